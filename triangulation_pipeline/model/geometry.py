"""Slant ranges, emission times and Gauss-Newton steps on tensors.

Shapes: any leading axes, then W receivers. Positions are (east, north), metres.
"""

import math
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from triangulation_pipeline.frame import surface_up_m

# Information along the worse axis is taken as at least this share of the better one's: float32 knows no less.
LEAST_INFORMATION = 1e-9
FARTHEST_INFORMATION = 1e-14  # 1 / m^2
LOG_ROOT_2_PI = 0.5 * math.log(2 * math.pi)


def ranges_m(en_m: Tensor, site_m: Tensor, surface: Any, altitude_m: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Ranges (..., W) and their gradients by east (..., W) and north (..., W).

    Parameters
    ----------
    en_m : Tensor, shape (..., 2)
        Positions on the surface at an altitude, metres.
    site_m : Tensor, shape (..., 3, W)
        Receivers, metres east, north and up.
    surface : five numbers, or Tensors of shape (...)
        ``LocalFrame.surface_coefficients``.
    altitude_m : float or Tensor, shape (...)
        Over the ellipsoid.
    """
    up_m, (slope_e, slope_n) = surface_up_m(en_m, surface, altitude_m)
    east_m = en_m[..., 0, None] - site_m[..., 0, :]
    north_m = en_m[..., 1, None] - site_m[..., 1, :]
    height_m = up_m[..., None] - site_m[..., 2, :]
    # At least 1 m: at a site itself there is no direction.
    inverse = torch.rsqrt((east_m * east_m + north_m * north_m + height_m * height_m).clamp_min(1.0))
    return (
        1.0 / inverse,
        (east_m + height_m * slope_e[..., None]) * inverse,
        (north_m + height_m * slope_n[..., None]) * inverse,
    )


def mean(values: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean over receivers, (..., 1); 0 if all weights are."""
    return (weight * values).sum(-1, keepdim=True) / weight.sum(-1, keepdim=True).clamp_min(1e-20)


def robust_residual(residual_m: Tensor, variance_m2: Tensor, timed: Tensor, rounds: int = 3) -> tuple[Tensor, Tensor]:
    """Residuals less the emission time, a reweighted mean, and Cauchy weights over the variance; ``timed``: 0 or 1."""
    prior = timed / variance_m2
    weight = prior
    for _ in range(rounds):
        off_m = residual_m - mean(residual_m, weight)
        weight = prior / (1 + off_m * off_m / variance_m2)
    return residual_m - mean(residual_m, weight), weight


@dataclass(frozen=True)
class Arrivals:
    """Arrival times that are direct, or late by an exponential delay: residuals (..., W) less the likeliest emission
    time, and what each is worth."""

    residual_m: Tensor  # 0 without an arrival time
    weight: Tensor  # 1 / m^2: one over the variance of a direct or of a late arrival, by their probabilities
    due_m: Tensor  # delay to be expected

    @classmethod
    def of(cls, residual_m: Tensor, sigma_m: Tensor, timed: Tensor, delayed: Any, delay_m: Any) -> Self:
        """Those of residuals with any common offset, ``timed`` 0 or 1, with the probability and the mean of delays.

        The emission time begins at the receiver for which all others are likeliest, and is refined by expectation
        maximisation.
        """
        ratio = sigma_m / delay_m
        late = -(delayed * ratio).log() - LOG_ROOT_2_PI
        best_m, least = torch.zeros_like(residual_m[..., :1]), torch.full_like(residual_m[..., :1], torch.inf)
        for i in range(residual_m.shape[-1]):
            x = (residual_m - residual_m[..., i : i + 1]) / sigma_m
            direct = x * x / 2
            cost = (timed * torch.where(x > 0, torch.minimum(direct, late + ratio * x), direct)).sum(-1, keepdim=True)
            better = (cost < least) & (timed[..., i : i + 1] > 0)
            best_m, least = torch.where(better, residual_m[..., i : i + 1], best_m), torch.where(better, cost, least)
        residual_m = (residual_m - best_m) * timed
        direct_m2 = sigma_m * sigma_m
        delayed_m2 = direct_m2 + delay_m * delay_m
        odds = (delayed / (1 - delayed) * ratio).log() + LOG_ROOT_2_PI
        due_m = weight = residual_m
        for _ in range(2):
            x = (residual_m / sigma_m).clamp(-3e3, 1e5)
            is_late = torch.sigmoid(odds + (ratio - x).square() / 2 + torch.special.log_ndtr(x - ratio))
            of_late = timed * is_late / delayed_m2
            weight = timed * (1 - is_late) / direct_m2 + of_late
            due_m = of_late * delay_m / weight.clamp_min(1e-20)
            residual_m = (residual_m - mean(residual_m - due_m, weight)) * timed
        return cls(residual_m, weight, due_m)


@dataclass(frozen=True)
class Ellipse:
    """Information on a position, as its Cholesky factor ``[[l, 0], [k l, m]]``."""

    east2: Tensor  # (...,) l squared, 1 / m^2
    across2: Tensor  # (...,) m squared, 1 / m^2
    k: Tensor  # (...,)

    @classmethod
    def of_spread(cls, spread_m: Tensor) -> Self:
        """That of a covariance by its Cholesky factor (..., 3): first, cross, second."""
        first, cross, second = spread_m.unbind(-1)
        north2 = cross * cross + second * second
        return cls(north2 / (first * second).square(), 1 / north2, -cross * first / north2)

    def squared(self, offset_m: Tensor) -> Tensor:
        """(...,) squared length of offsets (..., 2) in units of the ellipse."""
        along = offset_m[..., 0] + self.k * offset_m[..., 1]
        return self.east2 * along * along + self.across2 * offset_m[..., 1].square()

    def spread_m(self) -> Tensor:
        """(..., 3) Cholesky factor of the covariance: first, cross, second."""
        first = (1 / self.east2 + self.k.square() / self.across2).sqrt()
        second = (self.east2 * self.across2).rsqrt() / first
        return torch.stack([first, -self.k / (self.across2 * first), second], dim=-1)


@dataclass(frozen=True)
class Beside:
    """What is known of a position beside the arrival times, by levels and by the area: information (...,), 1 / m^2, and
    the pull (...,), 1 / m, towards where the levels are likelier."""

    east2: Tensor
    north2: Tensor
    both: Tensor
    pull_e: Tensor
    pull_n: Tensor

    @classmethod
    def of(
        cls, level: Tensor, slope: Tensor, hears: Tensor, range_m: Tensor, grad_e: Tensor, grad_n: Tensor, area_m: Any
    ) -> Self:
        """That of levels (..., W) off what is expected, in sigmas, their slope by the logarithm of the range, and the
        standard deviation of a place in the area; ``hears`` is 0 or 1."""
        scale = slope * hears / range_m
        east, north = scale * grad_e, scale * grad_n
        east, north = (east - mean(east, hears)) * hears, (north - mean(north, hears)) * hears
        by_area = 1 / (area_m * area_m)
        return cls(
            (east * east).sum(-1) + by_area,
            (north * north).sum(-1) + by_area,
            (east * north).sum(-1),
            -(east * level).sum(-1),
            -(north * level).sum(-1),
        )


@dataclass(frozen=True)
class Information:
    """Position information of weighted pseudo-ranges with unknown emission time, and of what is known beside them.
    Computed without cancellation, so that long and thin ellipses hold in float32."""

    ellipse: Ellipse
    east: Tensor  # (..., W) gradient by east, less its mean
    across: Tensor  # (..., W) gradient by north, less its mean and less k times ``east``
    pull_e: Tensor | float  # (...,)
    pull_across: Tensor | float  # (...,)

    @classmethod
    def of(
        cls, weight: Tensor, grad_e: Tensor, grad_n: Tensor, damping: float = 0.0, beside: Beside | None = None
    ) -> Self:
        """That of weights and gradients (..., W); ``damping`` times the mean information is added."""
        east, north = grad_e - mean(grad_e, weight), grad_n - mean(grad_n, weight)
        weighted = weight * east
        east2, north2 = (weighted * east).sum(-1), (weight * north * north).sum(-1)
        least = (LEAST_INFORMATION + damping / 2) * (east2 + north2) + FARTHEST_INFORMATION
        if beside is None:
            east2 = east2 + least
            k = (weighted * north).sum(-1) / east2
            across = north - k[..., None] * east
            return cls(Ellipse(east2, (weight * across * across).sum(-1) + least, k), east, across, 0.0, 0.0)
        east2 = east2 + least + beside.east2
        k = ((weighted * north).sum(-1) + beside.both) / east2
        across = north - k[..., None] * east
        more = beside.north2 - 2 * k * beside.both + k * k * beside.east2
        ellipse = Ellipse(east2, (weight * across * across).sum(-1) + least + more.clamp_min(0), k)
        return cls(ellipse, east, across, beside.pull_e, beside.pull_n - k * beside.pull_e)

    def step_m(self, residual_m: Tensor, weight: Tensor) -> Tensor:
        """(..., 2) the Gauss-Newton step that lowers the weighted squared residuals."""
        pulled = weight * residual_m
        north = ((pulled * self.across).sum(-1) + self.pull_across) / self.ellipse.across2
        east = ((pulled * self.east).sum(-1) + self.pull_e) / self.ellipse.east2 - self.ellipse.k * north
        return torch.stack([east, north], dim=-1)

    def reweighted(self, weight: Tensor, other: Tensor, residual_m: Tensor, due_m: Tensor) -> tuple[Tensor, Tensor]:
        """What becomes of the fix if one receiver has another weight, for each receiver by itself.

        A change of rank one of the information on position and emission time (Sherman and Morrison 1950).

        Parameters
        ----------
        weight : Tensor, shape (..., W)
            The weights that this information was made with.
        other : Tensor, shape (..., W)
            What each would be instead, above 0 where ``weight`` is.
        residual_m : Tensor, shape (..., W)
            Residuals at the fix, less their weighted mean.
        due_m : Tensor, shape (..., W)
            Delay to be expected of each under its other weight.

        Returns
        -------
        move_m : Tensor, shape (..., W, 2)
            From the fix to where it would be.
        spread_m : Tensor, shape (..., W, 3)
            Cholesky factor of its covariance: first, cross, second.
        """
        k, east2, across2 = (value[..., None] for value in (self.ellipse.k, self.ellipse.east2, self.ellipse.across2))
        north = self.across / across2
        east = self.east / east2 - k * north
        leverage = self.east.square() / east2 + self.across * north
        with_time = leverage + 1 / weight.sum(-1, keepdim=True).clamp_min(1e-20)
        change = other - weight
        spared = (1 + change * with_time).clamp_min(1e-6)
        move_m = ((change * residual_m - other * due_m) / spared)[..., None] * torch.stack([east, north], -1)
        grows = -change / spared
        first, cross, second = (value[..., None] for value in self.ellipse.spread_m().unbind(-1))
        new_first = (first.square() + grows * east.square()).clamp_min(1e-6).sqrt()
        new_cross = (first * cross + grows * east * north) / new_first
        # By the determinant: nothing cancels.
        new_second = first * second * (1 + grows * leverage).clamp_min(1e-6).sqrt() / new_first
        return move_m, torch.stack([new_first, new_cross, new_second], dim=-1)


def within(step_m: Tensor, longest_m: Tensor | float) -> Tensor:
    """Steps (..., 2), shortened to a length (..., 1)."""
    length_m = step_m.norm(dim=-1, keepdim=True)
    return step_m * (longest_m / torch.maximum(length_m, torch.as_tensor(longest_m)).clamp_min(1e-9))
