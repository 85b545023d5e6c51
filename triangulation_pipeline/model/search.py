"""The search for hypotheses of rows with three arrival times or more.

The service area is searched in coarse cells by arrival times, levels and detections; the distinct minima are
refined down to the noise; delayed paths are late only; where residuals leave doubt the row is solved again by all
receivers but one, and by any three; what lies closer together than the ellipses is one.

Shapes: W receivers, B rows, Q places. Positions are (2, B, Q), east and north.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from triangulation_pipeline.model.arrays import mean, total
from triangulation_pipeline.model.arrivals import Arrivals, direct_and_late, least_cost, robust_residual
from triangulation_pipeline.model.geometry import Beside, Ellipse, Information, distances_m, ranges_m, within
from triangulation_pipeline.model.hypotheses import Hypotheses, features
from triangulation_pipeline.model.inputs import LEAST_DELAYED
from triangulation_pipeline.model.levels import LevelFit, Levels
from triangulation_pipeline.model.receptions import Receptions
from triangulation_pipeline.model.spec import StartConfig
from triangulation_pipeline.network import LEAST_ARRIVAL_TIMES
from triangulation_pipeline.physics.constants import SPEED_OF_LIGHT_M_PER_NS
from triangulation_pipeline.physics.layout import Layout

Float = NDArray[np.floating]
Int = NDArray[np.int64]

# Of all choices of three receivers so many are tried.
MOST_TRIPLES = 100
# A residual of so many mean delays, which seven in a thousand delays have, shows that the search missed the place.
LOST_DELAYS = 5.0
# So many numbers of one kind are computed at once, but for those of the cells: what is worked on stays in the
# processor's cache, and the many small steps are of many rows.
CHUNK_NUMBERS, CELL_NUMBERS = 2**19, 2**16
_DAMPING = 1e-5


class Area:
    """What a layout says of ranges, levels and delays."""

    def __init__(self, layout: Layout, config: StartConfig) -> None:
        scenario = layout.scenario
        self.config = config
        self.surface = layout.network.frame.surface_coefficients
        self.levels = Levels(scenario)
        self.delayed = max(scenario.nlos_probability, LEAST_DELAYED)
        self.delay_m = scenario.nlos_mean_ns * SPEED_OF_LIGHT_M_PER_NS

    def distances_m(self, rows: Receptions, places_m: Float) -> Float:
        """(W, B, Q) ranges of places (2, B or 1, Q) to the receivers that hear."""
        return distances_m(places_m.transpose(1, 2, 0), rows.site_m[..., None], self.surface, rows.altitude_m[:, None])

    def ranges_m(self, rows: Receptions, places_m: Float) -> tuple[Float, Float, Float]:
        """The same with their gradients by east and north."""
        return ranges_m(places_m.transpose(1, 2, 0), rows.site_m[..., None], self.surface, rows.altitude_m[:, None])

    def level_cost(self, rows: Receptions, fit: LevelFit, places_m: Float) -> Float:
        """(B, Q) what levels and detections cost."""
        place_m = places_m.transpose(1, 2, 0)
        judged_m = rows.judged_m[..., None]
        if judged_m.shape[1]:
            judged_m = distances_m(place_m, judged_m, self.surface, rows.altitude_m[:, None])
        else:
            judged_m = judged_m[0]
        return self.levels.cost(rows, fit, judged_m)


@dataclass(frozen=True)
class _Costs:
    """What speaks against places (B, Q), each a minus log likelihood: arrival times, levels, being outside; and the
    Cauchy cost of the times, their information, and how far each level is off (W, B, Q)."""

    times: Float
    levels: Float
    outside: Float
    cauchy: Float
    ellipse: Ellipse
    off: Float

    @property
    def total(self) -> Float:
        return self.times + self.levels + self.outside

    def columns(self) -> tuple[Float, ...]:
        ellipse = self.ellipse
        return self.times, self.levels, self.outside, self.cauchy, ellipse.east2, ellipse.across2, ellipse.k, self.off

    @classmethod
    def of_columns(cls, columns: Sequence[Float]) -> "_Costs":
        times, levels, outside, cauchy, east2, across2, k, off = columns
        return cls(times, levels, outside, cauchy, Ellipse(east2, across2, k), off)

    def beside(self, others: "_Costs") -> "_Costs":
        """Those of these places and of others of the same rows."""
        pairs = zip(self.columns(), others.columns(), strict=True)
        return _Costs.of_columns([np.concatenate(pair, -1) for pair in pairs])

    def take(self, rows: Int) -> "_Costs":
        return _Costs.of_columns([np.take(column, rows, axis=-2) for column in self.columns()])

    def pick(self, index: Int) -> "_Costs":
        """Those of the places (B, K)."""
        return _Costs.of_columns([_picked(column, index) for column in self.columns()])


class Search(Area):
    """The hypotheses of the rows of one layout that have three arrival times or more."""

    def hypotheses(self, rows: Receptions) -> Hypotheses:
        """The best distinct minima of rows of one kind: all with three arrival times, or all with more."""
        # Two places may fit exactly: where there is no redundancy the search is finer.
        if rows.timed[:, 0].sum() <= LEAST_ARRIVAL_TIMES:
            return self._by(self.config.fine_cells_per_side, rows)
        found = self._by(self.config.cells_per_side, rows)
        # A delay that no path has: the cells were too coarse for the true minimum.
        lost = np.flatnonzero(self._is_lost(rows, found.places_m[:, :1].transpose(2, 0, 1)))
        if len(lost) and self.config.cells_per_side < self.config.fine_cells_per_side:
            found.put(lost, self._by(self.config.fine_cells_per_side, rows.take(lost)))
        return found

    def _by(self, side: int, rows: Receptions) -> Hypotheses:
        """The same by a search over ``side`` squared cells."""
        # By the pairs of sites at the candidates.
        step = max(1, CHUNK_NUMBERS // (len(rows.hears) ** 2 * self.config.candidates))
        if len(rows) <= step:
            return self._of_few(side, rows)
        found = Hypotheses.empty(len(rows), self.config.hypotheses, len(rows.hears))
        for chunk in (slice(first, first + step) for first in range(0, len(rows), step)):
            found.put(chunk, self._of_few(side, rows.part(chunk)))
        return found

    def _of_few(self, side: int, rows: Receptions) -> Hypotheses:
        """The same of rows that are computed at once."""
        step = max(1, CELL_NUMBERS // (side * side * len(rows.hears)))
        parts = (rows.part(slice(first, first + step)) for first in range(0, len(rows), step))
        places_m = self._refined(rows, np.concatenate([self._minima(part, side) for part in parts], axis=1))
        costs = self._costs(rows, places_m)
        best = np.argpartition(costs.total, 1, axis=-1)[:, :2] if places_m.shape[-1] > 2 else None
        late_m = self._late_only(rows, places_m if best is None else _picked(places_m, best))
        places_m, costs = np.concatenate([places_m, late_m], -1), costs.beside(self._costs(rows, late_m))
        best_m = _picked(places_m, costs.total.argmin(-1)[:, None])
        is_doubtful = self._is_doubtful(rows, best_m)
        if not is_doubtful.any():
            return self._distinct(rows, places_m, costs)
        if is_doubtful.all():
            return self._of_doubtful(rows, places_m, costs, best_m)
        found = Hypotheses.empty(len(rows), self.config.hypotheses, len(rows.hears))
        clear, doubtful = np.flatnonzero(~is_doubtful), np.flatnonzero(is_doubtful)
        found.put(clear, self._distinct(rows.take(clear), np.take(places_m, clear, axis=1), costs.take(clear)))
        some_m, some_best_m = np.take(places_m, doubtful, axis=1), np.take(best_m, doubtful, axis=1)
        found.put(doubtful, self._of_doubtful(rows.take(doubtful), some_m, costs.take(doubtful), some_best_m))
        return found

    def _of_doubtful(self, rows: Receptions, places_m: Float, costs: _Costs, best_m: Float) -> Hypotheses:
        """The best distinct ones of places (2, B, Q) and of those that few receivers agree on."""
        by_few_m = self._by_few(rows, best_m)
        places_m, costs = np.concatenate([places_m, by_few_m], -1), costs.beside(self._costs(rows, by_few_m))
        return self._distinct(rows, places_m, costs)

    def _minima(self, rows: Receptions, side: int) -> Float:
        """(2, B, Q) the lowest local minima of the cells of the area."""
        cell_m = (rows.high_m - rows.low_m) * np.float32(1 / side)
        en_m = rows.low_m[..., None] + cell_m[..., None] * (unit_cells(side) + np.float32(0.5))
        distance_m = self.distances_m(rows, en_m)
        fit, _ = self.levels.fit(rows, distance_m)
        timed, scale_m = rows.timed[..., None], np.float32(0.35) * cell_m.max(0)[:, None]
        residual, _ = robust_residual((rows.toa_m[..., None] - distance_m) / scale_m, np.float32(1.0), timed)
        cost = self.level_cost(rows, fit, en_m) + total(timed * np.log1p(residual * residual))
        plane = cost.reshape(-1, side, side)
        lowest = plane.copy()
        np.minimum(lowest[:, 1:], plane[:, :-1], out=lowest[:, 1:])
        np.minimum(lowest[:, :-1], plane[:, 1:], out=lowest[:, :-1])
        rowwise = lowest.copy()
        np.minimum(lowest[..., 1:], rowwise[..., :-1], out=lowest[..., 1:])
        np.minimum(lowest[..., :-1], rowwise[..., 1:], out=lowest[..., :-1])
        cost = cost + np.float32(1e3) * (plane > lowest).reshape(cost.shape)
        number = min(self.config.candidates * side // self.config.cells_per_side, side * side)
        return _picked(en_m, np.argpartition(cost, number - 1, axis=-1)[:, :number])

    def _cell_m(self, rows: Receptions) -> Float:
        """(B, 1) side of a cell of the coarse search."""
        return (rows.longer_m * np.float32(1 / self.config.cells_per_side))[:, None]

    def _moved(self, rows: Receptions, places_m: Float, step_m: tuple[Float, Float], longest_cells: float) -> Float:
        cell_m = self._cell_m(rows)
        moved_m, margin_m = places_m + np.array(within(step_m, longest_cells * cell_m)), cell_m * np.float32(1 / 8)
        return np.minimum(np.maximum(moved_m, rows.low_m[..., None] - margin_m), rows.high_m[..., None] + margin_m)

    def _refined(self, rows: Receptions, places_m: Float) -> Float:
        timed, toa_m, sigma_m = rows.timed[..., None], rows.toa_m[..., None], rows.sigma_m[..., None]
        variance_m2, cell_m2 = sigma_m * sigma_m, self._cell_m(rows) ** 2
        for scale in self.config.refinement_scales:
            distance_m, grad_e, grad_n = self.ranges_m(rows, places_m)
            blurred_m2 = variance_m2 + scale**2 * cell_m2
            residual_m, weight = robust_residual(toa_m - distance_m, blurred_m2, timed)
            step_m = Information.of(weight, grad_e, grad_n, damping=_DAMPING).step_m(residual_m, weight)
            places_m = self._moved(rows, places_m, step_m, 1.5)
        return places_m

    def _late_only(self, rows: Receptions, places_m: Float) -> Float:
        """Places refined by weights that know that a delayed arrival is late: what lies early is no delay."""
        timed, toa_m, sigma_m = rows.timed[..., None], rows.toa_m[..., None], rows.sigma_m[..., None]
        for _ in range(self.config.delay_steps):
            distance_m, grad_e, grad_n = self.ranges_m(rows, places_m)
            seen = Arrivals.of(toa_m - distance_m, sigma_m, timed, self.delayed, self.delay_m)
            fit, slope = self.levels.fit(rows, distance_m)
            beside = self._beside(rows, fit, slope, distance_m, grad_e, grad_n)
            information = Information.of(seen.weight, grad_e, grad_n, _DAMPING, beside)
            step_m = information.step_m(seen.residual_m - seen.due_m, seen.weight)
            places_m = self._moved(rows, places_m, step_m, 0.5)
        return places_m

    def _beside(
        self, rows: Receptions, fit: LevelFit, slope: Float, distance_m: Float, grad_e: Float, grad_n: Float
    ) -> Beside:
        """What levels and area tell of places (B, Q), beside the arrival times."""
        return Beside.of(fit.off, slope, rows.levelled[..., None], distance_m, grad_e, grad_n, rows.area_m[:, None])

    def _is_doubtful(self, rows: Receptions, best_m: Float) -> NDArray[np.bool_]:
        """(B,) whether a residual at the best place (2, B, 1) is large, where one receiver can be spared."""
        worst = (np.abs(self._residual_m(rows, best_m)) / rows.sigma_m).max(0)
        return (worst > self.config.doubt_sigmas) & (total(rows.timed) > LEAST_ARRIVAL_TIMES)

    def _is_lost(self, rows: Receptions, best_m: Float) -> NDArray[np.bool_]:
        """(B,) whether a residual at the best place (2, B, 1) is larger than delays are."""
        most_m = LOST_DELAYS * self.delay_m + 3 * rows.sigma_m
        return np.asarray((np.abs(self._residual_m(rows, best_m)) > most_m).any(0))

    def _residual_m(self, rows: Receptions, best_m: Float) -> Float:
        """(W, B) residuals at places (2, B, 1); 0 without an arrival time."""
        distance_m = self.distances_m(rows, best_m)[..., 0]
        residual_m, _ = robust_residual(rows.toa_m - distance_m, rows.sigma_m * rows.sigma_m, rows.timed)
        return residual_m * rows.timed

    def _by_few(self, rows: Receptions, best_m: Float) -> Float:
        """(2, B, Q) places that all receivers but one agree on, or any three, from the best place (2, B, 1): the
        likeliest of all such choices, refined. Where several paths are delayed, three direct ones find the place."""
        distance_m, grad_e, grad_n = self.ranges_m(rows, best_m)
        timed, per_sigma = rows.timed[..., None], 1 / rows.sigma_m[..., None]
        weight = timed * per_sigma * per_sigma * _subsets(len(rows.timed))[:, None]
        residual_m = rows.toa_m[..., None] - distance_m
        residual_m = residual_m - mean(residual_m, weight)
        x = residual_m * per_sigma
        weight = weight / (1 + x * x * np.float32(1 / 9))
        residual_m = residual_m - mean(residual_m, weight)
        information = Information.of(weight, grad_e, grad_n, damping=_DAMPING)
        step_m = within(information.step_m(residual_m, weight), 0.5 * self._cell_m(rows))
        left_m = residual_m - step_m[0] * grad_e - step_m[1] * grad_n
        x, ratio = (left_m - mean(left_m, weight)) * per_sigma, 1 / (per_sigma * self.delay_m)
        # A close bound of the likelihood without any transcendental function: direct, or late.
        direct = x * x * 0.5
        late = ratio * x - (np.log(self.delayed * ratio) + np.float32(0.5 * math.log(2 * math.pi)))
        cost = total(timed * (direct - (x > 0) * np.maximum(direct - late, 0)))
        number = min(self.config.refits, cost.shape[-1])
        chosen = np.argpartition(cost, number - 1, axis=-1)[:, :number]
        begin_m = self._moved(rows, best_m, (_picked(step_m[0], chosen), _picked(step_m[1], chosen)), 0.5)
        return self._late_only(rows, begin_m)

    def _costs(self, rows: Receptions, places_m: Float) -> _Costs:
        timed, sigma_m = rows.timed[..., None], rows.sigma_m[..., None]
        distance_m, grad_e, grad_n = self.ranges_m(rows, places_m)
        seen = Arrivals.of(rows.toa_m[..., None] - distance_m, sigma_m, timed, self.delayed, self.delay_m)
        fit, slope = self.levels.fit(rows, distance_m)
        beside = self._beside(rows, fit, slope, distance_m, grad_e, grad_n)
        ellipse = Information.of(seen.weight, grad_e, grad_n, beside=beside).ellipse
        beyond_m = total(np.maximum(np.maximum(rows.low_m[..., None] - places_m, places_m - rows.high_m[..., None]), 0))
        first, cross, second = ellipse.spread_m()
        bound_m2 = np.clip(first * first + cross * cross + second * second, 1, 1e10)
        x, ratio = seen.residual_m / sigma_m, sigma_m / self.delay_m
        direct, late = direct_and_late(np.clip(x, -3e3, 1e5), ratio, self.delayed)
        times = timed * (least_cost(np.clip(x, -3e3, 1e5), ratio) - np.log(direct + late))
        return _Costs(
            times=total(times),
            levels=self.level_cost(rows, fit, places_m),
            outside=np.minimum(beyond_m * beyond_m / bound_m2, 50) * np.float32(0.5),
            cauchy=total(timed * np.log1p(x * x)),
            ellipse=ellipse,
            off=fit.off,
        )

    def _distinct(self, rows: Receptions, places_m: Float, costs: _Costs) -> Hypotheses:
        """The best places that lie further apart than either's ellipse."""
        left = costs.total
        limit = left.min(-1) - self.config.least_log_share
        row, chosen, alive = np.arange(len(rows)), [], []
        for _ in range(self.config.hypotheses):
            best = left.argmin(-1)
            chosen.append(best)
            alive.append(left[row, best] <= limit)
            apart_m = places_m - places_m[:, row, best][..., None]
            ellipse = costs.ellipse
            of_best = Ellipse(*(v[row, best][:, None] for v in (ellipse.east2, ellipse.across2, ellipse.k)))
            nearness = np.minimum(ellipse.squared(*apart_m), of_best.squared(*apart_m))
            left = np.where(nearness < self.config.same_distance, np.float32(np.inf), left)
            left[row, best] = np.inf
        is_alive, index = np.stack(alive, -1), np.stack(chosen, -1)
        kept, en_m = costs.pick(index), _picked(places_m, index)
        log_mass = -kept.total - np.log(kept.ellipse.east2 * kept.ellipse.across2) * np.float32(0.5)
        apart = kept.ellipse.squared(*(en_m - en_m[..., :1])) ** 0.5
        return Hypotheses(
            alive=is_alive,
            places_m=en_m.transpose(1, 2, 0),
            spread_m=np.stack(kept.ellipse.spread_m(), -1),
            features=features(rows, is_alive, log_mass, kept.levels, (kept.times, kept.cauchy, apart, kept.outside)),
            level=kept.off.transpose(1, 2, 0),
        )


def unit_cells(side: int) -> Float:
    """(2, 1, side^2) indices of cells."""
    return np.indices((side, side), np.float32).reshape(2, 1, -1)


@cache
def _subsets(width: int) -> Float:
    """(W, P) 1 for the receivers kept: all but one, and three."""
    triples = list(combinations(range(width), 3))
    chosen = np.random.default_rng(0).permutation(len(triples))[:MOST_TRIPLES]
    three = np.zeros((width, len(chosen)), np.float32)
    for column, i in enumerate(chosen):
        three[list(triples[i]), column] = 1.0
    return np.concatenate([1 - np.eye(width, dtype=np.float32), three], axis=1)


def _picked(values: NDArray, index: Int) -> NDArray:
    """(..., B, K) those of an index (B, K) among (..., B, Q)."""
    # Indexing would put the first axis last in memory.
    return np.ascontiguousarray(values[..., np.arange(len(index))[:, None], index])
