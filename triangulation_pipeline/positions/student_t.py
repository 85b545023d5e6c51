"""Bivariate Student's t, many at once: densities, covariances and moments, by elements instead of matrices."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

# The elements (1, 1), (2, 1) and (2, 2) of lower triangular matrices that turn scale matrices into the unit matrix.
Whitening = tuple[Any, Any, Any]

# So many degrees of freedom are a Gaussian, to all digits.
GAUSSIAN_FREEDOM = 1e12


def whitening_of(scale_m2: NDArray[np.float64]) -> Whitening:
    """The inverse of the Cholesky factor of scale matrices (..., 2, 2)."""
    ee, nn, en = scale_m2[..., 0, 0], scale_m2[..., 1, 1], scale_m2[..., 0, 1]
    first = np.sqrt(ee)
    second = np.sqrt(nn - en * en / ee)
    return 1 / first, -en / (ee * second), 1 / second


def log_densities(log_weight: Any, apart_m: Any, whitening: Whitening, freedom: Any) -> tuple[Any, Any]:
    """The logarithm of weighted t densities (...) at distances ``apart_m`` (..., 2) from their centres, and the squared
    distances in units of the scale matrices. In the precision of the arguments."""
    a, b, c = whitening
    squared = (a * apart_m[..., 0]) ** 2 + (b * apart_m[..., 0] + c * apart_m[..., 1]) ** 2
    finite = np.minimum(freedom, GAUSSIAN_FREEDOM)
    log_peak = log_weight + np.log(a * c) - math.log(2 * math.pi)
    return log_peak - (finite / 2 + 1) * np.log1p(squared / finite), squared


def log_sum(log_values: NDArray[np.float64]) -> NDArray[np.float64]:
    """log sum exp over the last axis; minus infinity of nothing."""
    peak = np.maximum(log_values.max(-1, initial=-np.inf), -1e300)
    with np.errstate(divide="ignore"):
        return peak + np.log(np.exp(log_values - peak[..., None]).sum(-1))


def covariances_m2(scale_m2: NDArray[np.float64], freedom: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n, k, 2, 2) covariances of Student's t."""
    return scale_m2 / (1 - 2 / freedom)[..., None, None]


def moments(
    weight: NDArray[np.float64], en_m: NDArray[np.float64], covariance_m2: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean (n, 2) and covariance (n, 2, 2) of mixtures with weights (n, k); NaN if all weights are 0."""
    with np.errstate(invalid="ignore"):
        share = weight / weight.sum(1, keepdims=True)
    mean_m = np.einsum("nk,nki->ni", share, en_m)
    apart_m = en_m - mean_m[:, None]
    between_m2 = np.einsum("nk,nki,nkj->nij", share, apart_m, apart_m)
    return mean_m, np.einsum("nk,nkij->nij", share, covariance_m2) + between_m2
