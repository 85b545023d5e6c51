"""Slant ranges, ellipses and Gauss-Newton steps, of NumPy arrays and of tensors alike.

Shapes: W receivers, then any axes (...), so that a sum over receivers is a sum of whole arrays. A position is a pair
(east, north), metres.
"""

from dataclasses import dataclass
from typing import Any, Self

from triangulation_pipeline.frame import surface_up_m
from triangulation_pipeline.model.arrays import at_least, mean, sqrt, total

Pair = tuple[Any, Any]
Triple = tuple[Any, Any, Any]

# Information along the worse axis is taken as at least this share of the better one's: float32 knows no less.
LEAST_INFORMATION = 1e-9
FARTHEST_INFORMATION = 1e-14  # 1 / m^2


def distances_m(en_m: Any, site_m: Any, surface: Any, altitude_m: Any) -> Any:
    """Ranges (W, ...), as ``ranges_m`` gives them."""
    up_m, _ = surface_up_m(en_m, surface, altitude_m)
    east_m, north_m, height_m = en_m[..., 0] - site_m[0], en_m[..., 1] - site_m[1], up_m - site_m[2]
    return sqrt(at_least(east_m * east_m + north_m * north_m + height_m * height_m, 1.0))


def ranges_m(en_m: Any, site_m: Any, surface: Any, altitude_m: Any) -> Triple:
    """Ranges (W, ...) and their gradients by east (W, ...) and north (W, ...).

    Parameters
    ----------
    en_m : shape (..., 2)
        Positions on the surface at an altitude, metres.
    site_m : shape (3, W, ...)
        Receivers, metres east, north and up.
    surface : five numbers, or arrays of shape (...)
        ``LocalFrame.surface_coefficients``.
    altitude_m : float or array, shape (...)
        Over the ellipsoid.
    """
    up_m, (slope_e, slope_n) = surface_up_m(en_m, surface, altitude_m)
    east_m, north_m, height_m = en_m[..., 0] - site_m[0], en_m[..., 1] - site_m[1], up_m - site_m[2]
    # At least 1 m: at a site itself there is no direction.
    range_m = sqrt(at_least(east_m * east_m + north_m * north_m + height_m * height_m, 1.0))
    inverse = 1.0 / range_m
    return range_m, (east_m + height_m * slope_e) * inverse, (north_m + height_m * slope_n) * inverse


@dataclass(frozen=True)
class Ellipse:
    """Information on a position, as its Cholesky factor ``[[l, 0], [k l, m]]``."""

    east2: Any  # (...) l squared, 1 / m^2
    across2: Any  # (...) m squared, 1 / m^2
    k: Any  # (...)

    @classmethod
    def of_spread(cls, first: Any, cross: Any, second: Any) -> Self:
        """That of a covariance by its Cholesky factor, (...) each."""
        north2 = cross * cross + second * second
        scale = first * second
        return cls(north2 / (scale * scale), 1.0 / north2, -cross * first / north2)

    def squared(self, east_m: Any, north_m: Any) -> Any:
        """(...) squared length of offsets in units of the ellipse."""
        along = east_m + self.k * north_m
        return self.east2 * along * along + self.across2 * north_m * north_m

    def spread_m(self) -> Triple:
        """Cholesky factor of the covariance, (...) each: first, cross, second."""
        first = sqrt(1.0 / self.east2 + self.k * self.k / self.across2)
        return first, -self.k / (self.across2 * first), 1.0 / (sqrt(self.east2 * self.across2) * first)


@dataclass(frozen=True)
class Beside:
    """What is known of a position beside the arrival times, by levels and by the area: information (...), 1 / m^2, and
    the pull (...), 1 / m, towards where the levels are likelier."""

    east2: Any
    north2: Any
    both: Any
    pull_e: Any
    pull_n: Any

    @classmethod
    def of(cls, level: Any, slope: Any, hears: Any, range_m: Any, grad_e: Any, grad_n: Any, area_m: Any) -> Self:
        """That of levels (W, ...) off what is expected, in sigmas, their slope by the logarithm of the range, and the
        standard deviation of a place in the area; ``hears`` is 0 or 1."""
        scale = slope * hears / range_m
        east, north = scale * grad_e, scale * grad_n
        east, north = (east - mean(east, hears)) * hears, (north - mean(north, hears)) * hears
        by_area = 1.0 / (area_m * area_m)
        return cls(
            total(east * east) + by_area,
            total(north * north) + by_area,
            total(east * north),
            -total(east * level),
            -total(north * level),
        )


@dataclass(frozen=True)
class Information:
    """Position information of weighted pseudo-ranges with unknown emission time, and of what is known beside them.
    Computed without cancellation, so that long and thin ellipses hold in float32."""

    ellipse: Ellipse
    east: Any  # (W, ...) gradient by east, less its mean
    across: Any  # (W, ...) gradient by north, less its mean and less k times ``east``
    pull_e: Any  # (...)
    pull_across: Any  # (...)

    @classmethod
    def of(cls, weight: Any, grad_e: Any, grad_n: Any, damping: float = 0.0, beside: Beside | None = None) -> Self:
        """That of weights and gradients (W, ...); ``damping`` times the mean information is added."""
        whole = at_least(total(weight), 1e-20)
        east, north = grad_e - total(weight * grad_e) / whole, grad_n - total(weight * grad_n) / whole
        weighted = weight * east
        east2, north2 = total(weighted * east), total(weight * north * north)
        least = (LEAST_INFORMATION + damping / 2) * (east2 + north2) + FARTHEST_INFORMATION
        if beside is None:
            east2 = east2 + least
            k = total(weighted * north) / east2
            across = north - k * east
            return cls(Ellipse(east2, total(weight * across * across) + least, k), east, across, 0.0, 0.0)
        east2 = east2 + least + beside.east2
        k = (total(weighted * north) + beside.both) / east2
        across = north - k * east
        more = beside.north2 - 2 * k * beside.both + k * k * beside.east2
        ellipse = Ellipse(east2, total(weight * across * across) + least + at_least(more, 0.0), k)
        return cls(ellipse, east, across, beside.pull_e, beside.pull_n - k * beside.pull_e)

    def step_m(self, residual_m: Any, weight: Any) -> Pair:
        """The Gauss-Newton step that lowers the weighted squared residuals, (...) by east and north."""
        pulled = weight * residual_m
        north = (total(pulled * self.across) + self.pull_across) / self.ellipse.across2
        return (total(pulled * self.east) + self.pull_e) / self.ellipse.east2 - self.ellipse.k * north, north

    def reweighted(self, weight: Any, other: Any, residual_m: Any, due_m: Any) -> tuple[Pair, Triple]:
        """What becomes of the fix if one receiver has another weight, for each receiver by itself.

        A change of rank one of the information on position and emission time (Sherman and Morrison 1950).

        Parameters
        ----------
        weight : shape (W, ...)
            The weights that this information was made with.
        other : shape (W, ...)
            What each would be instead, above 0 where ``weight`` is.
        residual_m : shape (W, ...)
            Residuals at the fix, less their weighted mean.
        due_m : shape (W, ...)
            Delay to be expected of each under its other weight.

        Returns
        -------
        move_m : pair of shape (W, ...)
            From the fix to where it would be.
        spread_m : triple of shape (W, ...)
            Cholesky factor of its covariance: first, cross, second.
        """
        ellipse = self.ellipse
        north = self.across / ellipse.across2
        east = self.east / ellipse.east2 - ellipse.k * north
        leverage = self.east * self.east / ellipse.east2 + self.across * north
        with_time = leverage + 1.0 / at_least(total(weight), 1e-20)
        change = other - weight
        spared = at_least(1.0 + change * with_time, 1e-6)
        moved = (change * residual_m - other * due_m) / spared
        grows = -change / spared
        first, cross, second = ellipse.spread_m()
        new_first = sqrt(at_least(first * first + grows * east * east, 1e-6))
        new_cross = (first * cross + grows * east * north) / new_first
        # By the determinant: nothing cancels.
        new_second = first * second * sqrt(at_least(1.0 + grows * leverage, 1e-6)) / new_first
        return (moved * east, moved * north), (new_first, new_cross, new_second)


def within(step_m: Pair, longest_m: Any) -> Pair:
    """Steps (...), shortened to a length (...)."""
    east_m, north_m = step_m
    # A length of exactly 0 has no gradient.
    length_m = sqrt(east_m * east_m + north_m * north_m + 1e-18)
    share = longest_m / at_least(at_least(length_m, longest_m), 1e-9)
    return east_m * share, north_m * share
