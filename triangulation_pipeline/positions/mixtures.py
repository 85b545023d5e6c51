"""Posteriors: mixtures of bivariate Student's t, their modes and regions."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from triangulation_pipeline.positions.points import Positions
from triangulation_pipeline.positions.solutions import Alternatives, separate_solutions
from triangulation_pipeline.positions.student_t import (
    GAUSSIAN_FREEDOM,
    covariances_m2,
    log_densities,
    log_sum,
    moments,
    whitening_of,
)

# Draws from each mixture, and the weight of the components, all together, that get none.
DRAWS = 400
_NEGLIGIBLE = 1e-3
_BLOCK_ROWS = 64
# Steps towards a mode, until they are shorter than so many standard deviations.
_UPHILL_STEPS, _UPHILL_TOLERANCE = 30, 1e-3
_MODE_BLOCK_ROWS = 512


@dataclass(frozen=True)
class MixturePositions(Positions):
    """n posteriors, each a mixture of at most k bivariate Student's t; ``of_components`` makes them.

    ``en_m`` and ``covariance_m2`` are the mean and the covariance of the whole mixture. A component whose log weight is
    minus infinity does not exist: it stands as a Gaussian of 1 m at the origin. With infinitely many degrees of freedom
    a t is a Gaussian. A row without components has no position: everything it is asked for is NaN. Raises ValueError if
    an array has another shape, or if a component has not more than two degrees of freedom.

    The region of a probability is the smallest that holds it, that of highest density. It may have several parts.
    """

    log_weight: NDArray[np.float64]  # (n, k) logarithms of weights that sum to 1
    component_en_m: NDArray[np.float64]  # (n, k, 2) centres, east and north
    scale_m2: NDArray[np.float64]  # (n, k, 2, 2) scale matrices
    freedom: NDArray[np.float64]  # (n, k) degrees of freedom

    def __post_init__(self) -> None:
        super().__post_init__()
        shape = self.log_weight.shape
        if self.log_weight.ndim != 2 or shape[0] != len(self):
            raise ValueError(f"log_weight must have the shape ({len(self)}, k), it has {shape}")
        for name, inner in (("component_en_m", (2,)), ("scale_m2", (2, 2)), ("freedom", ())):
            found = getattr(self, name).shape
            if found != shape + inner:
                raise ValueError(f"{name} must have the shape {shape + inner}, it has {found}")
        least = np.min(self.freedom, where=self.log_weight > -np.inf, initial=np.inf)
        if not least > 2:
            raise ValueError(f"freedom must be above 2, the least is {least:g}")

    @classmethod
    def of_components(
        cls,
        log_weight: NDArray[np.float64],
        component_en_m: NDArray[np.float64],
        scale_m2: NDArray[np.float64],
        freedom: NDArray[np.float64],
    ) -> Self:
        """The posteriors that have these components.

        Parameters
        ----------
        log_weight : ndarray, shape (n, k)
            Logarithms of the weights, up to a constant of the row; minus infinity for a component that does not exist.
        component_en_m : ndarray, shape (n, k, 2)
            Centres, east and north, metres.
        scale_m2 : ndarray, shape (n, k, 2, 2)
            Scale matrices, square metres.
        freedom : ndarray, shape (n, k)
            Degrees of freedom, above 2.

        Returns
        -------
        MixturePositions
            n rows. One of which a component is no number, or has a scale matrix that is not positive definite, is a row
            without a position.

        Raises
        ------
        ValueError
            As the class does.
        """
        log_total = log_sum(log_weight)
        ee, nn, en = scale_m2[..., 0, 0], scale_m2[..., 1, 1], scale_m2[..., 0, 1]
        with np.errstate(invalid="ignore", over="ignore"):
            definite = (ee > 0) & (ee * nn - en * en > 0) & np.isfinite(ee * nn)
        sound = np.isfinite(component_en_m).all(-1) & definite & ~np.isnan(freedom)
        exists = log_weight > -np.inf
        located = np.isfinite(log_total) & (sound | ~exists).all(1)
        exists &= located[:, None]
        log_weight = np.where(exists, log_weight - np.where(located, log_total, 0.0)[:, None], -np.inf)
        component_en_m = np.where(exists[..., None], component_en_m, 0.0)
        scale_m2 = np.where(exists[..., None, None], scale_m2, np.eye(2))
        freedom = np.where(exists, freedom, np.inf)
        inside_m2 = covariances_m2(scale_m2, freedom)
        en_m, covariance_m2 = moments(np.exp(log_weight), component_en_m, inside_m2)
        return cls(en_m, covariance_m2, log_weight, component_en_m, scale_m2, freedom)

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """All rows in one object.

        Parameters
        ----------
        parts : sequence of MixturePositions
            At least one. Their numbers of components may differ.

        Returns
        -------
        MixturePositions
            The rows in the order given.
        """
        width = max(part.log_weight.shape[1] for part in parts)
        absent: dict[str, Any] = {
            "log_weight": -np.inf,
            "component_en_m": 0.0,
            "scale_m2": np.eye(2),
            "freedom": np.inf,
        }

        def widened(part: Self, name: str) -> NDArray[np.float64]:
            values: NDArray[np.float64] = getattr(part, name)
            if name not in absent:
                return values
            missing = np.broadcast_to(absent[name], (len(values), width - values.shape[1], *values.shape[2:]))
            return np.concatenate([values, missing], axis=1)

        return cls(**{f.name: np.concatenate([widened(part, f.name) for part in parts]) for f in fields(cls)})

    def take(self, rows: NDArray[np.bool_] | NDArray[np.integer] | slice) -> Self:
        """The rows that a mask, indices or a slice picks.

        Parameters
        ----------
        rows : ndarray of bool, shape (n,), ndarray of int, or slice

        Returns
        -------
        MixturePositions
        """
        return type(self)(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})

    @property
    def exists(self) -> NDArray[np.bool_]:
        """(n, k) which components exist."""
        return self.log_weight > -np.inf

    def log_density(self, en_m: NDArray[np.float64]) -> NDArray[np.float64]:
        """Logarithm of the density.

        Parameters
        ----------
        en_m : ndarray, shape (n, 2)
            Places, east and north, metres.

        Returns
        -------
        ndarray, shape (n,)
            Nats per square metre; NaN in a row without a position.
        """
        apart_m = en_m[:, None] - self.component_en_m
        log_parts, _ = log_densities(self.log_weight, apart_m, whitening_of(self.scale_m2), self.freedom)
        return np.where(self.exists.any(1), log_sum(log_parts), np.nan)

    def mode_en_m(self) -> NDArray[np.float64]:
        """The peak of the density that is uphill from the densest centre, by expectation maximisation. Where many
        components overlap, another peak may be a little higher. The lightest components, which together have less than
        a thousandth, have no part in it.

        Returns
        -------
        ndarray, shape (n, 2)
            East and north, metres; NaN in a row without a position.
        """
        mode_en_m = np.full((len(self), 2), np.nan)
        for rows, picked, log_weight in self._heaviest(_MODE_BLOCK_ROWS):
            # Components first: sums over them are then sums of whole arrays.
            at = rows, picked.T
            (a, b, c), (centre_e, centre_n) = (
                whitening_of(self.scale_m2[at]),
                np.moveaxis(self.component_en_m[at], -1, 0),
            )
            freedom = np.minimum(self.freedom[at], GAUSSIAN_FREEDOM)
            log_peak = log_weight.T + np.log(a * c)
            peak = np.exp(log_peak - log_peak.max(0))
            parts = _Parts(peak, freedom, a, b, c, centre_e, centre_n)
            at_centres = parts.pulls(centre_e[:, None], centre_n[:, None])[0].sum(1)
            densest = np.where(peak > 0, at_centres, 0.0).argmax(0), np.arange(len(rows))
            east, north = centre_e[densest], centre_n[densest]
            for _ in range(_UPHILL_STEPS):
                east, north, step = parts.uphill(east, north)
                mode_en_m[rows, 0], mode_en_m[rows, 1] = east, north
                moving = np.flatnonzero(step > _UPHILL_TOLERANCE**2)
                if not len(moving):
                    break
                rows, east, north, parts = rows[moving], east[moving], north[moving], parts.take(moving)
        return mode_en_m

    def content_at(self, en_m: NDArray[np.float64]) -> NDArray[np.float64]:
        """Probability of the region that is denser than a place: the least region that reaches the place.

        If the densities are right, the contents at the truths are uniform between 0 and 1. It is counted among fixed
        quasi-random draws from the mixture, so its error is some thousandths, and a row has the same content among any
        others.

        Parameters
        ----------
        en_m : ndarray, shape (n, 2)
            Places, east and north, metres.

        Returns
        -------
        ndarray, shape (n,)
            0 at the mode to 1; NaN in a row without a position, or where the place is NaN.
        """
        log_density = self.log_density(en_m)
        content = np.full(len(self), np.nan)
        for rows, at_draws, log_peak in self._draws():
            here = np.exp(log_density[rows] - log_peak)
            content[rows] = np.where(np.isnan(here), np.nan, (at_draws > here[:, None]).mean(1))
        return content

    def covers(self, en_m: NDArray[np.float64], level: float) -> NDArray[np.bool_]:
        """Whether places lie within the region of a probability.

        Parameters
        ----------
        en_m : ndarray, shape (n, 2)
            Places, east and north, metres.
        level : float
            Probability of the region, 0 to 1.

        Returns
        -------
        ndarray of bool, shape (n,)
            False in a row without a position.
        """
        return self.content_at(en_m) <= level

    def region_area_m2(self, level: float) -> NDArray[np.float64]:
        """Area of the region of a probability, by the same draws as ``content_at``.

        Parameters
        ----------
        level : float
            Probability of the region, above 0 and below 1.

        Returns
        -------
        ndarray, shape (n,)
            Square metres, all parts together; NaN in a row without a position.
        """
        area_m2 = np.full(len(self), np.nan)
        for rows, at_draws, log_peak in self._draws():
            ordered = -np.sort(-at_draws.astype(np.float64), axis=1)[:, : max(1, round(level * DRAWS))]
            area_m2[rows] = (1 / ordered).sum(1) / DRAWS * np.exp(-log_peak)
        return area_m2

    def region_log_density(self, levels: Sequence[float]) -> NDArray[np.float64]:
        """The density at the border of the regions of some probabilities: a place lies within a region if its density
        is not lower. It is counted among the draws of ``content_at``, so that the same places are covered.

        Parameters
        ----------
        levels : sequence of float
            l probabilities of regions, each from 0 to below 1.

        Returns
        -------
        ndarray, shape (n, l)
            Nats per square metre; NaN in a row without a position.
        """
        border = np.full((len(self), len(levels)), np.nan)
        # As many draws as this may be denser; a product such as 400 * 0.95 must not fall below the whole number.
        denser = [int(level * DRAWS + 1e-9) for level in levels]
        for rows, at_draws, log_peak in self._draws():
            ordered = -np.sort(-at_draws.astype(np.float64), axis=1)
            with np.errstate(divide="ignore"):
                border[rows] = np.log(ordered[:, denser]) + log_peak[:, None]
        return border

    def alternatives(self) -> Alternatives:
        """The separate solutions (``separate_solutions``).

        Returns
        -------
        Alternatives
            The solutions of each row, the most probable first.
        """
        inside_m2 = covariances_m2(self.scale_m2, self.freedom)
        return separate_solutions(np.exp(self.log_weight), self.component_en_m, inside_m2)

    def _heaviest(self, block_rows: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]]:
        """Blocks of b rows that have a position: which rows, (b, k) their components from the heaviest on, and the
        logarithms of their weights, minus infinity for those that together have less than ``_NEGLIGIBLE``; rows with as
        many others are together."""
        weight = np.exp(self.log_weight)
        order = np.argsort(-weight, axis=1, kind="stable")
        weight = np.take_along_axis(weight, order, 1)
        before = np.cumsum(weight, axis=1) - weight
        kept = ((before < 1 - _NEGLIGIBLE) & (weight > 0)).sum(1)
        located = np.flatnonzero(kept)
        by_count = located[np.argsort(kept[located], kind="stable")]
        for rows in (by_count[i : i + block_rows] for i in range(0, len(by_count), block_rows)):
            picked = order[rows, : kept[rows].max()]
            counts = np.arange(picked.shape[1]) < kept[rows, None]
            yield rows, picked, np.where(counts, self.log_weight[rows[:, None], picked], -np.inf)

    def _draws(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float64]]]:
        """The densities at ``DRAWS`` draws from each mixture, in blocks of b rows that have a position: which rows,
        (b, DRAWS) the densities in units of a density near the highest, and (b,) the logarithm of that.

        The components are those of ``_heaviest``.
        """
        uniform, which, angle = _quasi_random(DRAWS)
        radius_squared = -2 * np.log1p(-uniform)  # of a Gaussian
        circle = np.stack([np.cos(2 * np.pi * angle), np.sin(2 * np.pi * angle)], axis=-1)
        for rows, picked, log_weight in self._heaviest(_BLOCK_ROWS):
            freedom, scale_m2 = (values[rows[:, None], picked] for values in (self.freedom, self.scale_m2))
            centre_m = self.component_en_m[rows[:, None], picked]
            centre_m = centre_m - centre_m[:, :1]  # small numbers, for the sake of the precision
            whitening = whitening_of(scale_m2)
            ends = np.cumsum(np.exp(log_weight), axis=1)
            index = (which >= (ends / ends[:, -1:])[:, :-1, None]).sum(1)
            of_draw = np.take_along_axis(freedom, index, 1)
            with np.errstate(invalid="ignore"):
                stretched = of_draw * np.expm1(radius_squared / of_draw)
            radius = np.sqrt(np.where(np.isinf(of_draw), radius_squared, stretched))
            unit = radius[..., None] * circle
            a, b, c = (np.take_along_axis(values, index, 1) for values in whitening)
            north = (unit[..., 1] - b * unit[..., 0] / a) / c
            draw_m = np.take_along_axis(centre_m, index[..., None], 1) + np.stack([unit[..., 0] / a, north], axis=-1)
            log_peak = np.max(log_weight + np.log(whitening[0] * whitening[2]) - np.log(2 * np.pi), axis=1)
            at_draws = np.zeros(draw_m.shape[:2], np.float32)
            draw_m = draw_m.astype(np.float32)
            for k in range(picked.shape[1]):
                one = (slice(None), slice(k, k + 1))
                log_part, _ = log_densities(
                    (log_weight[one] - log_peak[:, None]).astype(np.float32),
                    draw_m - centre_m[one].astype(np.float32),
                    tuple(values[one].astype(np.float32) for values in whitening),
                    freedom[one].astype(np.float32),
                )
                at_draws += np.exp(log_part)
            yield rows, at_draws, log_peak


@dataclass(frozen=True)
class _Parts:
    """The k components of b rows, (k, b) each: densities at their centres, degrees of freedom, the elements of the
    whitening matrices, and centres."""

    peak: NDArray[np.float64]
    freedom: NDArray[np.float64]
    a: NDArray[np.float64]
    b: NDArray[np.float64]
    c: NDArray[np.float64]
    centre_e: NDArray[np.float64]
    centre_n: NDArray[np.float64]

    def take(self, rows: NDArray[np.integer]) -> "_Parts":
        return _Parts(*(np.take(getattr(self, f.name), rows, axis=1) for f in fields(self)))

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


def _quasi_random(number: int) -> NDArray[np.float64]:
    """(3, number) points: even steps, and beside them the additive recurrence with powers of the root of x^3 = x + 1
    (Roberts 2018)."""
    index, root = np.arange(number) + 0.5, 1.324717957244746
    return np.stack([index / number, index / root % 1, index / root**2 % 1])
