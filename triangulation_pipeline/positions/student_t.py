"""Bivariate Student's t, many at once: densities, covariances and moments, by elements instead of matrices."""

import math
from dataclasses import dataclass, fields
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


@dataclass(frozen=True)
class Components:
    """The k components of b rows, (k, b) each: densities at their centres, degrees of freedom, the elements of the
    whitening matrices, and centres."""

    peak: NDArray[np.float64]
    freedom: NDArray[np.float64]
    a: NDArray[np.float64]
    b: NDArray[np.float64]
    c: NDArray[np.float64]
    centre_e: NDArray[np.float64]
    centre_n: NDArray[np.float64]

    def take(self, rows: NDArray[np.integer]) -> "Components":
        """Those of some rows."""
        return Components(*(np.take(getattr(self, f.name), rows, axis=1) for f in fields(self)))

    def pulls(self, east: NDArray[np.float64], north: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
        """Densities (..., k, b) at places, the same weighted by what each component pulls, and the distances."""
        east, north = self.centre_e - east, self.centre_n - north
        first, second = self.a * east, self.b * east + self.c * north
        base = 1 + (first * first + second * second) / self.freedom
        density = self.peak * np.exp(np.log(base) * (-0.5 * self.freedom - 1))
        return density, density * (1 + 2 / self.freedom) / base, east, north

    def uphill(
        self, east: NDArray[np.float64], north: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """One step of expectation maximisation from places (b,): the new ones, and the squared length of the step in
        standard deviations."""
        density, pull, away_e, away_n = self.pulls(east, north)
        pull = pull / density.sum(0)
        across = pull * self.b * self.c
        by_e, by_n = pull * (self.a * self.a + self.b * self.b), pull * self.c * self.c
        ee, en, nn = by_e.sum(0), across.sum(0), by_n.sum(0)
        push_e, push_n = (by_e * away_e + across * away_n).sum(0), (across * away_e + by_n * away_n).sum(0)
        determinant = ee * nn - en * en
        step_e, step_n = (nn * push_e - en * push_n) / determinant, (ee * push_n - en * push_e) / determinant
        return east + step_e, north + step_n, step_e * push_e + step_n * push_n
