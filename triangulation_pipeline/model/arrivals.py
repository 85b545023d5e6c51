"""Arrival times that may be late, of NumPy arrays and of tensors alike.

Shapes: W receivers, then any axes (...), so that a sum over receivers is a sum of whole arrays.
"""

import math
from dataclasses import dataclass
from typing import Any, Self

from triangulation_pipeline.model.arrays import at_least, at_most, copysign, exp, least_of, log, mean

LOG_ROOT_2_PI = 0.5 * math.log(2 * math.pi)
_ROOT_2_PI = math.sqrt(2 * math.pi)
# exp(a^2 / 2) times the probability that a standard normal is beyond a >= 0, is the polynomial in t = 1 / (1 + k a)
# times t, to 7e-7 of it: a least-maximum fit of the relative error.
_TAIL_K = 0.325
_TAIL = (
    *(0.129656153, 0.129672108, 0.115503436, 0.0935198443, 0.0260329523, 0.0853331263, -0.113541687, 0.0338243631),
)


def robust_residual(residual_m: Any, variance_m2: Any, timed: Any, rounds: int = 3) -> tuple[Any, Any]:
    """Residuals less the emission time, a reweighted mean, and Cauchy weights over the variance; ``timed``: 0 or 1."""
    precision = 1.0 / variance_m2
    prior = timed * precision
    weight = prior
    for _ in range(rounds):
        off_m = residual_m - mean(residual_m, weight)
        weight = prior / (1.0 + off_m * off_m * precision)
    return residual_m - mean(residual_m, weight), weight


def _normal(u: Any) -> tuple[Any, Any]:
    """``exp(-max(u, 0)^2 / 2)``, and the probability that a standard normal is below u over ``exp(-min(u, 0)^2 / 2)``:
    neither is ever lost in float32."""
    tail = 1.0 / (1.0 + _TAIL_K * abs(u))
    beyond = tail * _TAIL[-1]
    for coefficient in _TAIL[-2:0:-1]:
        beyond = (beyond + coefficient) * tail
    beyond = (beyond + _TAIL[0]) * tail
    above = at_least(u, 0.0)
    fall = exp(above * above * -0.5)
    return fall, 0.5 + copysign(0.5 - fall * beyond, u)


def log_normal(u: Any) -> Any:
    """Logarithm of the probability that a standard normal is below u."""
    under = at_most(u, 0.0)
    return log(_normal(u)[1]) - under * under * 0.5


def direct_and_late(x: Any, ratio: Any, delayed: Any) -> tuple[Any, Any]:
    """How likely residuals are if the path is direct, and if it is late by an exponential delay.

    Parameters
    ----------
    x : shape (W, ...)
        Residuals in standard deviations.
    ratio : shape (W, ...)
        The standard deviation over the mean delay.
    delayed : float, or array of shape (...)
        The probability of a delay.

    Returns
    -------
    direct, late
        Likelihoods over ``exp(-least_cost(x, ratio))``: one of them is never small, so that nothing overflows or is
        lost.
    """
    fall, below = _normal(x - ratio)
    return (1.0 - delayed) * fall, (delayed * _ROOT_2_PI) * ratio * below


def least_cost(x: Any, ratio: Any) -> Any:
    """(W, ...) the exponent that ``direct_and_late`` leaves out."""
    near = at_most(x, ratio)
    return near * near * 0.5 + ratio * at_least(x - ratio, 0.0)


@dataclass(frozen=True)
class Arrivals:
    """Arrival times that are direct, or late by an exponential delay: residuals (W, ...) less the likeliest emission
    time, and what each is worth."""

    residual_m: Any  # 0 without an arrival time
    weight: Any  # 1 / m^2: one over the variance of a direct or of a late arrival, by their probabilities
    due_m: Any  # delay to be expected

    @classmethod
    def of(cls, residual_m: Any, sigma_m: Any, timed: Any, delayed: Any, delay_m: Any) -> Self:
        """Those of residuals with any common offset, ``timed`` 0 or 1, with the probability and the mean of delays.

        The emission time begins at the receiver for which all others are likeliest, and is refined by expectation
        maximisation.
        """
        ratio, per_sigma = sigma_m / delay_m, timed / sigma_m
        # By each receiver in turn (W, W, ...): what all others cost if it is direct, up to a constant. One that is late
        # costs the square of x, or the line of a delay if that is less.
        least_late = at_least(-LOG_ROOT_2_PI - log(delayed * ratio), 0.0)
        x = (residual_m[None] - residual_m[:, None]) * (per_sigma * math.sqrt(0.5))
        saved = at_least(x, 0.0)
        saved = at_least((saved - ratio * math.sqrt(2.0)) * saved, least_late)
        cost = (x * x - saved).sum(1) + (1.0 - timed) * 1e30
        residual_m = (residual_m - mean(residual_m, timed * (cost <= least_of(cost)))) * timed
        direct_m2 = per_sigma * per_sigma
        delayed_m2 = timed / (sigma_m * sigma_m + delay_m * delay_m)
        due_m = weight = residual_m
        for _ in range(2):
            by_direct, by_late = direct_and_late(at_most(at_least(residual_m * per_sigma, -3e3), 1e5), ratio, delayed)
            is_late = by_late / (by_late + by_direct)
            of_late = is_late * delayed_m2
            weight = (1.0 - is_late) * direct_m2 + of_late
            due_m = of_late * delay_m / at_least(weight, 1e-20)
            residual_m = (residual_m - mean(residual_m - due_m, weight)) * timed
        return cls(residual_m, weight, due_m)
