"""Where a locator begins: hypotheses of a transmitter's place, several if the row leaves doubt, with what speaks for
each. Nothing here is learned.

Rows with three arrival times or more: the service area is searched in coarse cells by arrival times, levels and silent
receivers; the distinct minima are refined down to the noise; delayed paths are late only; where residuals leave doubt
the row is solved again by all receivers but one, and by any three; what lies closer together than the ellipses is one.
Other rows: the posterior is summed over the cells, finely where it lies; that of two arrival times is cut into parts
across its longer axis.

Shapes: B rows, Q places, W receivers that hear, S silent receivers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from triangulation_pipeline.measurements import Measurements
from triangulation_pipeline.model.geometry import (
    LOG_ROOT_2_PI,
    Arrivals,
    Beside,
    Ellipse,
    Information,
    mean,
    ranges_m,
    robust_residual,
    within,
)
from triangulation_pipeline.model.inputs import FARTHEST_M, HYPOTHESIS_FEATURES, LEAST_DELAYED, LocatorInputs
from triangulation_pipeline.model.spec import StartConfig
from triangulation_pipeline.network import LEAST_ARRIVAL_TIMES
from triangulation_pipeline.physics.constants import SPEED_OF_LIGHT_M_PER_NS
from triangulation_pipeline.physics.layout import Layout
from triangulation_pipeline.physics.propagation import path_loss_function, path_loss_slope_db
from triangulation_pipeline.physics.scenario import Scenario

CHUNK_ROWS = 512
# Of the silent receivers those nearest to the levels' centre count: the others would not hear it anyway.
NEAREST_SILENT = 12
# Of all choices of three receivers so many are tried.
MOST_TRIPLES = 100
# A residual of so many mean delays, which seven in a thousand delays have, shows that the search missed the place.
LOST_DELAYS = 5.0
_DAMPING = 1e-5


@torch.no_grad()
def prepared(layout: Layout, measurements: Measurements, config: StartConfig, solve: bool) -> LocatorInputs:
    """The rows of calibrated measurements with their hypotheses.

    Parameters
    ----------
    layout : Layout
        Network and scenario.
    measurements : Measurements
        n rows, freed of what is known of the sites.
    config : StartConfig
        The constants.
    solve : bool
        Whether arrival times are solved for; otherwise the posterior of every row is summed over cells.

    Returns
    -------
    LocatorInputs
        n rows, each independent of the others.
    """
    n, scenario = len(measurements), layout.scenario
    rows = _Rows.of(layout, measurements)
    width = max(1, int(rows.hears.sum(1).max())) if n else 1
    found = _Found.empty(n, config.hypotheses, width)
    search = _Search(layout, config)
    solved = (rows.timed.sum(1) >= LEAST_ARRIVAL_TIMES) & solve
    just_enough = rows.timed.sum(1) == LEAST_ARRIVAL_TIMES
    # Rows that as many receivers hear stand together, so that none is padded much.
    kind = torch.stack([solved.long(), just_enough.long(), rows.hears.sum(1)], 1)
    for kind_of in torch.unique(kind, dim=0):
        same = torch.nonzero((kind == kind_of).all(1))[:, 0]
        same = same[torch.argsort(rows.silent.sum(1)[same], stable=True)]
        for chunk in same.split(CHUNK_ROWS):
            part = rows.take(chunk)
            if not kind_of[0]:
                found.put(chunk, search.by_cells(part))
            else:
                # Two places may fit exactly: where there is no redundancy the search is finer.
                side = config.fine_cells_per_side if kind_of[1] else config.cells_per_side
                found.put(chunk, search.by_solving(part, side))
                # A delay that no path has: the cells were too coarse for the true minimum.
                lost = torch.nonzero(search.is_lost(part, found.places_m[chunk, :1]))[:, 0]
                if len(lost) and side < config.fine_cells_per_side:
                    found.put(chunk[lost], search.by_solving(part.take(lost), config.fine_cells_per_side))
    link_db = scenario.link_level_sigma_db
    coefficients = torch.tensor(layout.network.frame.surface_coefficients, dtype=torch.float32)
    slope_db = path_loss_slope_db(scenario, np.exp(rows.mean_log_km(found.places_m[:, 0], coefficients)))
    return LocatorInputs(
        site_m_B3W=rows.site_m[..., :width].contiguous(),
        hears_BW=rows.hears[:, :width].contiguous(),
        timed_BW=rows.timed[:, :width].contiguous(),
        toa_m_BW=rows.toa_m[:, :width].contiguous(),
        sigma_m_BW=rows.sigma_m[:, :width].contiguous(),
        level_BKW=found.level,
        level_slope_B=torch.as_tensor(slope_db / link_db, dtype=torch.float32),
        altitude_m_B=rows.altitude_m,
        surface_B5=coefficients.expand(n, 5).contiguous(),
        delay_probability_B=torch.full((n,), scenario.nlos_probability),
        delay_mean_m_B=torch.full((n,), scenario.nlos_mean_ns * SPEED_OF_LIGHT_M_PER_NS),
        area_m_B=rows.area_m,
        alive_BK=found.alive,
        hypothesis_m_BK2=found.places_m,
        spread_m_BK3=found.spread_m,
        hypothesis_features_BKF=found.features,
    )


@dataclass(frozen=True)
class _Rows:
    """Measurements as tensors, each row by its own receivers: those with arrival times, then the others that hear; and
    beside them the silent ones that count. A level that was not reported is 0 and not levelled."""

    site_m: Tensor  # (B, 3, W)
    hears: Tensor  # (B, W) bool
    timed: Tensor  # (B, W) bool
    levelled: Tensor  # (B, W) bool
    toa_m: Tensor  # (B, W)
    sigma_m: Tensor  # (B, W)
    power_dbm: Tensor  # (B, W)
    silent_m: Tensor  # (B, 3, S)
    silent: Tensor  # (B, S) bool
    floor_dbm: Tensor  # (B, S)
    altitude_m: Tensor  # (B,)
    low_m: Tensor  # (B, 2) corners of the service area
    high_m: Tensor  # (B, 2)

    @classmethod
    def of(cls, layout: Layout, measurements: Measurements) -> "_Rows":
        hears = measurements.signal_present
        timed = measurements.toa_present & hears
        has_level = np.isfinite(measurements.power_dbm)
        levelled = hears & has_level
        power_dbm = np.where(has_level, measurements.power_dbm, 0.0)
        site_m = layout.network.site_enu_m
        width = max(1, int(hears.sum(1).max(initial=0)))
        order = np.argsort(-(timed.astype(np.int8) + hears), axis=1, kind="stable")[:, :width]

        def of_hearing(values: NDArray) -> NDArray:
            return np.take_along_axis(values, order, 1)

        is_timed = of_hearing(timed)
        range_m = SPEED_OF_LIGHT_M_PER_NS * of_hearing(measurements.toa_ns)
        middle = (np.maximum(is_timed.sum(1, keepdims=True), 1) - 1) // 2
        median_m = np.take_along_axis(np.sort(np.where(is_timed, range_m, np.inf), axis=1), middle, 1)
        toa_m = np.where(
            is_timed, np.clip(range_m - np.where(np.isfinite(median_m), median_m, 0.0), -FARTHEST_M, FARTHEST_M), 0.0
        )
        sigma_m = np.where(is_timed, SPEED_OF_LIGHT_M_PER_NS * of_hearing(measurements.toa_sigma_ns), 1.0)

        # The silent receivers nearest to the centre of the received power.
        level_db = np.where(levelled, power_dbm, -np.inf).astype(np.float64)
        peak_db = np.where(levelled.any(1), level_db.max(1, initial=-np.inf), 0.0)
        power = 10 ** ((level_db - peak_db[:, None]) / 10)
        centre_m = (power @ site_m[:, :2]) / np.maximum(power.sum(1), 1.0)[:, None]
        number = min(NEAREST_SILENT, max(1, int((~hears).sum(1).max(initial=0))))
        away_m2 = ((centre_m[:, None] - site_m[:, :2]) ** 2).sum(-1)
        away_m2[hears | ~has_level] = np.inf
        nearest = np.argsort(away_m2, axis=1, kind="stable")[:, :number]

        def tensor(values: NDArray) -> Tensor:
            return torch.as_tensor(np.ascontiguousarray(values, dtype=np.float32))

        return cls(
            tensor((site_m[order] * of_hearing(hears)[..., None]).transpose(0, 2, 1)),
            torch.as_tensor(of_hearing(hears)),
            torch.as_tensor(is_timed),
            torch.as_tensor(of_hearing(levelled)),
            tensor(toa_m),
            tensor(sigma_m),
            tensor(of_hearing(power_dbm)),
            tensor(site_m[nearest].transpose(0, 2, 1)),
            torch.as_tensor(np.isfinite(np.take_along_axis(away_m2, nearest, 1))),
            tensor(np.take_along_axis(power_dbm, nearest, 1)),
            tensor(measurements.tx_altitude_m),
            *map(tensor, layout.areas_m(measurements)),
        )

    @property
    def longer_m(self) -> Tensor:
        """(B,) the longer side of the service area; the other one differs little."""
        return (self.high_m - self.low_m).amax(1)

    @property
    def area_m(self) -> Tensor:
        """(B,) standard deviation of a place in the area."""
        return self.longer_m / math.sqrt(12)

    def take(self, rows: Tensor) -> "_Rows":
        """Some rows that as many receivers hear, without padding."""
        width = max(1, int(self.hears[rows].sum(1).max()))
        number = int(self.silent[rows].sum(1).max())
        of_hearing = ("site_m", "hears", "timed", "levelled", "toa_m", "sigma_m", "power_dbm")
        of_silent = ("silent_m", "silent", "floor_dbm")
        return _Rows(
            **{name: getattr(self, name)[rows][..., :width] for name in of_hearing},
            **{name: getattr(self, name)[rows][..., :number] for name in of_silent},
            **{name: getattr(self, name)[rows] for name in ("altitude_m", "low_m", "high_m")},
        )

    def mean_log_km(self, en_m: Tensor, coefficients: Tensor) -> NDArray[np.float64]:
        """(B,) mean logarithm of the range, km, from places (B, 2) to the receivers that hear."""
        distance_m = ranges_m(en_m, self.site_m, coefficients, self.altitude_m)[0]
        return mean((distance_m / 1e3).log(), self.hears.float())[:, 0].double().numpy()


@dataclass(frozen=True)
class _Found:
    """Hypotheses (B, K): which are alive, where they are, their spread (first, cross, second), features, and how far
    each level is off (B, K, W)."""

    alive: Tensor
    places_m: Tensor
    spread_m: Tensor
    features: Tensor
    level: Tensor

    @classmethod
    def empty(cls, n: int, hypotheses: int, width: int) -> "_Found":
        return cls(
            torch.zeros((n, hypotheses), dtype=torch.bool),
            torch.zeros((n, hypotheses, 2)),
            torch.ones((n, hypotheses, 3)),
            torch.zeros((n, hypotheses, HYPOTHESIS_FEATURES)),
            torch.zeros((n, hypotheses, width)),
        )

    def put(self, rows: Tensor, part: "_Found") -> None:
        for name in ("alive", "places_m", "spread_m", "features"):
            getattr(self, name)[rows] = getattr(part, name)
        self.level[
            rows[:, None, None], torch.arange(part.level.shape[1])[:, None], torch.arange(part.level.shape[2])
        ] = part.level


class _Levels:
    """What a scenario says of levels and of silence, with the level that is common to a transmission Gaussian."""

    def __init__(self, scenario: Scenario) -> None:
        self.nodes = 1024
        self.first, last = 0.0, math.log(4e6)
        self.step = (last - self.first) / (self.nodes - 1)
        range_km = np.exp(self.first + self.step * np.arange(self.nodes)) / 1e3
        loss_db = path_loss_function(scenario)(range_km) - scenario.tx_antenna_gain_dbi - scenario.rx_antenna_gain_dbi
        self.loss_db = torch.as_tensor(loss_db, dtype=torch.float32)
        self.rise_db = torch.diff(self.loss_db, append=self.loss_db[-1:])
        self.link_db = scenario.link_level_sigma_db
        self.mean_dbm = float(np.dot(scenario.tx_power_share, scenario.tx_power_dbm))
        self.precision = 1 / max(scenario.common_level_variance_db2, 0.01)
        self.threshold_db = scenario.detection_threshold_db
        self.width2_db2 = self.link_db**2 + scenario.detection_width_db**2

    def loss(self, distance_m: Tensor) -> tuple[Tensor, Tensor]:
        """Median loss less the antennas' gains, dB, by a fine table; and how much it rises from node to node."""
        at = ((distance_m.log() - self.first) / self.step).clamp(0, self.nodes - 1.001)
        index = at.long()
        rise_db = self.rise_db[index]
        return self.loss_db[index] + (at - index) * rise_db, rise_db

    def off(self, rows: _Rows, distance_m: Tensor) -> tuple[Tensor, Tensor]:
        """(B, Q, W) how far each level is off what is expected with the likeliest common level, and its slope by the
        logarithm of the range, both in sigmas."""
        levelled = rows.levelled[:, None].float()
        loss_db, rise_db = self.loss(distance_m)
        common_dbm = (rows.power_dbm[:, None] + loss_db) * levelled
        return (common_dbm - self._best_dbm(common_dbm, levelled)[0]) * levelled / self.link_db, rise_db / (
            self.step * self.link_db
        )

    def _best_dbm(self, common_dbm: Tensor, levelled: Tensor) -> tuple[Tensor, Tensor]:
        """(B, Q, 1) the likeliest common level by those of single links, and its precision."""
        precision = levelled.sum(-1, keepdim=True) / self.link_db**2 + self.precision
        best_dbm = (common_dbm.sum(-1, keepdim=True) / self.link_db**2 + self.mean_dbm * self.precision) / precision
        return best_dbm, precision

    def cost(self, rows: _Rows, distance_m: Tensor, silent_m: Tensor) -> tuple[Tensor, Tensor]:
        """(B, Q) minus log likelihood up to a constant of the row, and (B, Q, W) how far each level is off, sigmas."""
        levelled = rows.levelled[:, None].float()
        common_dbm = (rows.power_dbm[:, None] + self.loss(distance_m)[0]) * levelled
        best_dbm, precision = self._best_dbm(common_dbm, levelled)
        off = (common_dbm - best_dbm) * levelled / self.link_db
        cost = (off * off).sum(-1) / 2 + (best_dbm[..., 0] - self.mean_dbm).square() * (self.precision / 2)
        if silent_m.shape[-1]:
            margin_db = best_dbm - self.loss(silent_m)[0] - rows.floor_dbm[:, None] - self.threshold_db
            heard_not = torch.special.log_ndtr(-margin_db / (self.width2_db2 + 1 / precision).sqrt())
            cost = cost - (heard_not * rows.silent[:, None]).sum(-1)
        return cost, off


@dataclass(frozen=True)
class _Costs:
    """What speaks against places (B, Q), each a minus log likelihood: arrival times, levels, being outside; and the
    Cauchy cost of the times, and their information."""

    times: Tensor
    levels: Tensor
    outside: Tensor
    cauchy: Tensor
    ellipse: Ellipse

    @property
    def total(self) -> Tensor:
        return self.times + self.levels + self.outside

    def columns(self) -> tuple[Tensor, ...]:
        ellipse = self.ellipse
        return self.times, self.levels, self.outside, self.cauchy, ellipse.east2, ellipse.across2, ellipse.k

    @classmethod
    def of_columns(cls, columns: Sequence[Tensor]) -> "_Costs":
        times, levels, outside, cauchy, east2, across2, k = columns
        return cls(times, levels, outside, cauchy, Ellipse(east2, across2, k))

    def beside(self, others: "_Costs") -> "_Costs":
        """Those of these places and of others of the same rows."""
        return _Costs.of_columns([torch.cat(pair, 1) for pair in zip(self.columns(), others.columns(), strict=True)])

    def take(self, rows: Tensor) -> "_Costs":
        return _Costs.of_columns([column[rows] for column in self.columns()])

    def pick(self, index: Tensor) -> "_Costs":
        """Those of the places (B, K)."""
        return _Costs.of_columns([column.gather(1, index) for column in self.columns()])


class _Search:
    """The hypotheses of the rows of one layout."""

    def __init__(self, layout: Layout, config: StartConfig) -> None:
        scenario = layout.scenario
        self.config = config
        self.surface = layout.network.frame.surface_coefficients
        self.levels = _Levels(scenario)
        self.delayed = max(scenario.nlos_probability, LEAST_DELAYED)
        self.delay_m = scenario.nlos_mean_ns * SPEED_OF_LIGHT_M_PER_NS

    def cell_m(self, rows: _Rows) -> Tensor:
        """(B, 1) side of a cell of the coarse search."""
        return (rows.longer_m / self.config.cells_per_side)[:, None]

    def ranges(self, rows: _Rows, en_m: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of places (B or 1, Q, 2) to the receivers that hear, (B, Q, W) each."""
        return ranges_m(en_m, rows.site_m[:, None], self.surface, rows.altitude_m[:, None])

    def level_cost(self, rows: _Rows, en_m: Tensor, distance_m: Tensor) -> tuple[Tensor, Tensor]:
        silent_m = ranges_m(en_m, rows.silent_m[:, None], self.surface, rows.altitude_m[:, None])[0]
        return self.levels.cost(rows, distance_m, silent_m)

    def by_cells(self, rows: _Rows) -> _Found:
        """The posterior summed over cells: those of the area, then as many where the posterior lies."""
        side = self.config.fine_cells_per_side
        low_m, high_m = rows.low_m, rows.high_m
        for _ in range(2):
            cell_m = (high_m - low_m) / side
            en_m = low_m[:, None] + cell_m[:, None] * (_unit_cells(side) + 0.5)
            share = self._share_of_cells(rows, en_m, cell_m)
            middle_m, variance_m2 = _moments(share, en_m)
            reach_m = 3 * variance_m2[..., :2].sqrt() + cell_m
            low_m = torch.maximum(middle_m - reach_m, rows.low_m)
            high_m = torch.minimum(middle_m + reach_m, rows.high_m)
        parts = self.config.hypotheses
        along = _along_longer_axis(en_m - middle_m[:, None], variance_m2)
        edges = torch.special.ndtri(torch.arange(1, parts) / parts)
        # Two arrival times leave a hyperbola, which one ellipse fits badly. What levels leave fills an ellipse, and its
        # parts would together be flatter than it is, and reach farther out of the area.
        is_hyperbola = (rows.timed.sum(1) == LEAST_ARRIVAL_TIMES - 1)[:, None]
        part = (along[..., None] > edges).sum(-1) * is_hyperbola
        within_part = share[:, None] * (part[:, None] == torch.arange(parts)[:, None])
        mass = within_part.sum(-1)
        alive = mass > math.exp(self.config.least_log_share)
        # The likeliest first: it is the one that is always alive.
        order = mass.argsort(dim=1, descending=True, stable=True)
        within_part, mass, alive = (
            within_part.gather(1, order[..., None].expand_as(within_part)),
            mass.gather(1, order),
            alive.gather(1, order),
        )
        conditional = within_part / mass[..., None].clamp_min(1e-30)
        places_m, variance_m2 = _moments(conditional, en_m[:, None])
        places_m = torch.where(alive[..., None], places_m, middle_m[:, None])
        variance_m2 = torch.where(alive[..., None], variance_m2, torch.tensor([1.0, 1.0, 0.0]))
        variance_m2[..., :2] += (cell_m * cell_m / 12)[:, None]
        distance_m, _, _ = self.ranges(rows, places_m)
        cost, level = self.level_cost(rows, places_m, distance_m)
        features = self._features(rows, alive, mass.clamp_min(1e-30).log(), cost, None)
        return _Found(alive, places_m, _cholesky(variance_m2), features, level)

    def _share_of_cells(self, rows: _Rows, en_m: Tensor, cell_m: Tensor) -> Tensor:
        """(B, Q) posterior probability of each cell."""
        distance_m, _, _ = self.ranges(rows, en_m)
        cost, _ = self.level_cost(rows, en_m, distance_m)
        timed = rows.timed[:, None].float()
        blur_m2 = (0.35 * cell_m.amax(1)).square()[:, None, None]
        variance_m2 = rows.sigma_m.square()[:, None] + blur_m2
        residual_m, _ = robust_residual(rows.toa_m[:, None] - distance_m, variance_m2, timed)
        cost = cost + (timed * (residual_m.square() / variance_m2).log1p()).sum(-1)
        return torch.softmax(-cost, dim=1)

    def by_solving(self, rows: _Rows, side: int) -> _Found:
        """The best distinct minima, by a search over ``side`` squared cells."""
        places_m = self._refined(rows, self._minima(rows, side))
        costs = self._costs(rows, places_m)
        best = costs.total.topk(min(2, places_m.shape[1]), dim=1, largest=False).indices
        late_m = self._late_only(rows, _places(places_m, best))
        places_m, costs = torch.cat([places_m, late_m], 1), costs.beside(self._costs(rows, late_m))
        best_m = _places(places_m, costs.total.argmin(1, keepdim=True))
        is_doubtful = self._is_doubtful(rows, best_m)
        found = _Found.empty(len(places_m), self.config.hypotheses, rows.hears.shape[1])
        for doubtful in (False, True):
            chunk = torch.nonzero(is_doubtful == doubtful)[:, 0]
            if not len(chunk):
                continue
            some, some_m, some_costs = rows.take(chunk), places_m[chunk], costs.take(chunk)
            if doubtful:
                by_few_m = self._by_few(some, best_m[chunk])
                some_m = torch.cat([some_m, by_few_m], 1)
                some_costs = some_costs.beside(self._costs(some, by_few_m))
            found.put(chunk, self._distinct(some, some_m, some_costs))
        return found

    def _minima(self, rows: _Rows, side: int) -> Tensor:
        """(B, Q, 2) the lowest local minima of the cells of the area."""
        cell_m = (rows.high_m - rows.low_m) / side
        en_m = rows.low_m[:, None] + cell_m[:, None] * (_unit_cells(side) + 0.5)
        distance_m, _, _ = self.ranges(rows, en_m)
        cost, _ = self.level_cost(rows, en_m, distance_m)
        scale_m = 0.35 * cell_m.amax(1)[:, None, None]
        timed = rows.timed[:, None].float()
        residual, _ = robust_residual((rows.toa_m[:, None] - distance_m) / scale_m, torch.ones(()), timed)
        cost = cost + (timed * residual.square().log1p()).sum(-1)
        plane = cost.view(-1, 1, side, side)
        lowest_near = -torch.nn.functional.max_pool2d(-plane, 3, 1, 1)
        cost = torch.where((plane <= lowest_near).view_as(cost), cost, cost + 1e3)
        number = min(self.config.candidates * side // self.config.cells_per_side, side * side)
        return _places(en_m, cost.topk(number, dim=1, largest=False).indices)

    def _moved(self, rows: _Rows, en_m: Tensor, step_m: Tensor, longest_cells: float) -> Tensor:
        cell_m = self.cell_m(rows)[:, None]
        moved_m = en_m + within(step_m, longest_cells * cell_m)
        margin_m = cell_m / 8
        return torch.minimum(torch.maximum(moved_m, rows.low_m[:, None] - margin_m), rows.high_m[:, None] + margin_m)

    def _refined(self, rows: _Rows, en_m: Tensor) -> Tensor:
        timed, toa_m, variance_m2 = rows.timed[:, None].float(), rows.toa_m[:, None], rows.sigma_m.square()[:, None]
        for scale in self.config.refinement_scales:
            distance_m, grad_e, grad_n = self.ranges(rows, en_m)
            blurred_m2 = variance_m2 + (scale * self.cell_m(rows)[:, None]) ** 2
            residual_m, weight = robust_residual(toa_m - distance_m, blurred_m2, timed)
            step_m = Information.of(weight, grad_e, grad_n, damping=_DAMPING).step_m(residual_m, weight)
            en_m = self._moved(rows, en_m, step_m, 1.5)
        return en_m

    def _late_only(self, rows: _Rows, en_m: Tensor) -> Tensor:
        """Places refined by weights that know that a delayed arrival is late: what lies early is no delay."""
        timed, toa_m, sigma_m = rows.timed[:, None].float(), rows.toa_m[:, None], rows.sigma_m[:, None]
        for _ in range(self.config.delay_steps):
            distance_m, grad_e, grad_n = self.ranges(rows, en_m)
            seen = Arrivals.of(toa_m - distance_m, sigma_m, timed, self.delayed, self.delay_m)
            beside = self._beside(rows, distance_m, grad_e, grad_n)
            information = Information.of(seen.weight, grad_e, grad_n, _DAMPING, beside)
            step_m = information.step_m(seen.residual_m - seen.due_m, seen.weight)
            en_m = self._moved(rows, en_m, step_m, 0.5)
        return en_m

    def _beside(self, rows: _Rows, distance_m: Tensor, grad_e: Tensor, grad_n: Tensor) -> Beside:
        """What levels and area tell of places (B, Q), beside the arrival times."""
        level, slope = self.levels.off(rows, distance_m)
        return Beside.of(level, slope, rows.levelled[:, None].float(), distance_m, grad_e, grad_n, rows.area_m[:, None])

    def _is_doubtful(self, rows: _Rows, best_m: Tensor) -> Tensor:
        """(B,) whether a residual at the best place (B, 1, 2) is large, where one receiver can be spared."""
        worst = (self._residual_m(rows, best_m).abs() / rows.sigma_m).amax(1)
        return (worst > self.config.doubt_sigmas) & (rows.timed.sum(1) > LEAST_ARRIVAL_TIMES)

    def is_lost(self, rows: _Rows, best_m: Tensor) -> Tensor:
        """(B,) whether a residual at the best place (B, 1, 2) is larger than delays are."""
        return (self._residual_m(rows, best_m).abs() > LOST_DELAYS * self.delay_m + 3 * rows.sigma_m).any(1)

    def _residual_m(self, rows: _Rows, best_m: Tensor) -> Tensor:
        """(B, W) residuals at places (B, 1, 2); 0 without an arrival time."""
        timed = rows.timed.float()
        distance_m = self.ranges(rows, best_m)[0][:, 0]
        residual_m, _ = robust_residual(rows.toa_m - distance_m, rows.sigma_m.square(), timed)
        return residual_m * timed

    def _by_few(self, rows: _Rows, best_m: Tensor) -> Tensor:
        """(B, Q, 2) places that all receivers but one agree on, or any three, from the best place (B, 1, 2): the
        likeliest of all such choices, refined. Where several paths are delayed, three direct ones find the place."""
        distance_m, grad_e, grad_n = self.ranges(rows, best_m)
        sigma_m, timed = rows.sigma_m[:, None], rows.timed[:, None].float()
        weight = timed / sigma_m.square() * _subsets(timed.shape[-1])
        residual_m = rows.toa_m[:, None] - distance_m
        residual_m = residual_m - mean(residual_m, weight)
        weight = weight / (1 + (residual_m / sigma_m).square() / 9)
        residual_m = residual_m - mean(residual_m, weight)
        information = Information.of(weight, grad_e, grad_n, damping=_DAMPING)
        step_m = within(information.step_m(residual_m, weight), 0.5 * self.cell_m(rows)[:, None])
        left_m = residual_m - step_m[..., :1] * grad_e - step_m[..., 1:] * grad_n
        left_m = left_m - mean(left_m, weight)
        x, ratio = left_m / sigma_m, sigma_m / self.delay_m
        # A close bound of the likelihood without any transcendental function: direct, or late.
        direct = x * x / 2
        late = -(self.delayed * ratio).log() - LOG_ROOT_2_PI + ratio * x
        cost = (timed * torch.where(x > 0, torch.minimum(direct, late), direct)).sum(-1)
        number = min(self.config.refits, cost.shape[1])
        chosen = cost.topk(number, dim=1, largest=False).indices
        return self._late_only(rows, self._moved(rows, best_m, _places(step_m, chosen), 0.5))

    def _costs(self, rows: _Rows, en_m: Tensor) -> _Costs:
        timed, sigma_m = rows.timed[:, None].float(), rows.sigma_m[:, None]
        distance_m, grad_e, grad_n = self.ranges(rows, en_m)
        seen = Arrivals.of(rows.toa_m[:, None] - distance_m, sigma_m, timed, self.delayed, self.delay_m)
        beside = self._beside(rows, distance_m, grad_e, grad_n)
        ellipse = Information.of(seen.weight, grad_e, grad_n, beside=beside).ellipse
        levels, _ = self.level_cost(rows, en_m, distance_m)
        beyond_m = torch.relu(torch.maximum(rows.low_m[:, None] - en_m, en_m - rows.high_m[:, None])).sum(-1)
        bound_m = ellipse.spread_m().norm(dim=-1).clamp(1, 1e5)
        return _Costs(
            times=self._cost_of_times(seen.residual_m, sigma_m, timed),
            levels=levels,
            outside=(beyond_m / bound_m).square().clamp_max(50) / 2,
            cauchy=(timed * (seen.residual_m / sigma_m).square().log1p()).sum(-1),
            ellipse=ellipse,
        )

    def _cost_of_times(self, residual_m: Tensor, sigma_m: Tensor, timed: Tensor) -> Tensor:
        """(B, Q) minus log likelihood of residuals that are Gaussian, or late by an exponential delay too, up to a
        constant of the row."""
        x, ratio = (residual_m / sigma_m).clamp(-3e3, 1e5), sigma_m / self.delay_m
        direct = math.log1p(-self.delayed) - x * x / 2
        late = (
            (self.delayed * ratio).log() + LOG_ROOT_2_PI + ratio * (ratio / 2 - x) + torch.special.log_ndtr(x - ratio)
        )
        return -(timed * torch.logaddexp(direct, late)).sum(-1)

    def _distinct(self, rows: _Rows, places_m: Tensor, costs: _Costs) -> _Found:
        """The best places that lie further apart than either's ellipse."""
        total = costs.total
        limit = total.amin(1, keepdim=True) - self.config.least_log_share
        chosen, alive = [], []
        for _ in range(self.config.hypotheses):
            best = total.argmin(1, keepdim=True)
            chosen.append(best)
            alive.append(total.gather(1, best) <= limit)
            apart_m = places_m - _places(places_m, best)
            nearness = torch.minimum(costs.ellipse.squared(apart_m), costs.pick(best).ellipse.squared(apart_m))
            total = total.masked_fill(nearness < self.config.same_distance, torch.inf).scatter(1, best, torch.inf)
        is_alive, kept = torch.cat(alive, 1), costs.pick(torch.cat(chosen, 1))
        en_m = _places(places_m, torch.cat(chosen, 1))
        log_mass = -kept.total - (kept.ellipse.east2 * kept.ellipse.across2).log() / 2
        apart = kept.ellipse.squared(en_m - en_m[:, :1]).sqrt()
        features = self._features(
            rows, is_alive, log_mass, kept.levels, torch.stack([kept.times, kept.cauchy, apart, kept.outside], -1)
        )
        _, level = self.level_cost(rows, en_m, self.ranges(rows, en_m)[0])
        return _Found(is_alive, en_m, kept.ellipse.spread_m(), features, level)

    def _features(
        self, rows: _Rows, alive: Tensor, log_mass: Tensor, levels: Tensor, by_times: Tensor | None
    ) -> Tensor:
        """(B, K, F) what is known of each hypothesis; the first is the logarithm of its share. ``by_times`` is None for
        rows that were summed over cells."""
        log_share = log_mass.masked_fill(~alive, -1e9).log_softmax(1).clamp_min(-15)
        timed = rows.timed.sum(1, keepdim=True).clamp_min(1)
        times, cauchy, apart, outside = torch.zeros((4, *log_share.shape)) if by_times is None else by_times.unbind(-1)
        return torch.stack(
            [
                log_share,
                times / timed,
                levels / rows.levelled.sum(1, keepdim=True).clamp_min(1),
                cauchy / timed,
                apart.log1p(),
                outside.clamp_max(20),
                alive.sum(1, keepdim=True).float().expand_as(log_share),
                timed.log().expand_as(log_share),
                torch.full_like(log_share, float(by_times is not None)),
            ],
            dim=-1,
        )


def _unit_cells(side: int) -> Tensor:
    """(side^2, 2) indices of cells."""
    return torch.cartesian_prod(torch.arange(side), torch.arange(side)).float()


def _moments(share: Tensor, en_m: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (..., 2), and variances by east and north and covariance (..., 3), of shares (..., Q) at (..., Q, 2)."""
    middle_m = (share[..., None] * en_m).sum(-2)
    east_m, north_m = (en_m - middle_m[..., None, :]).unbind(-1)
    products = torch.stack([east_m * east_m, north_m * north_m, east_m * north_m], -1)
    return middle_m, (share[..., None] * products).sum(-2)


def _along_longer_axis(offset_m: Tensor, variance_m2: Tensor) -> Tensor:
    """(B, Q) offsets (B, Q, 2) along the longer axis of variances (B, 3), in its standard deviations."""
    ee, nn, en = variance_m2.unbind(-1)
    angle = torch.atan2(2 * en, ee - nn) / 2
    direction = torch.stack([angle.cos(), angle.sin()], -1)
    variance = (ee + nn) / 2 + ((ee - nn).square() / 4 + en * en).sqrt()
    return (offset_m * direction[:, None]).sum(-1) * variance.clamp_min(1.0).rsqrt()[:, None]


def _cholesky(variance_m2: Tensor) -> Tensor:
    """(..., 3) first, cross, second of variances by east and north and covariance (..., 3)."""
    ee, nn, en = variance_m2.unbind(-1)
    first = ee.sqrt()
    return torch.stack([first, en / first, (nn - en * en / ee).clamp_min(1.0).sqrt()], -1)


@cache
def _subsets(width: int) -> Tensor:
    """(P, W) 1 for the receivers kept: all but one, and three."""
    triples = list(combinations(range(width), 3))
    chosen = np.random.default_rng(0).permutation(len(triples))[:MOST_TRIPLES]
    three = torch.zeros((len(chosen), width))
    for row, i in enumerate(chosen):
        three[row, list(triples[i])] = 1.0
    return torch.cat([1 - torch.eye(width), three])


def _places(places_m: Tensor, index: Tensor) -> Tensor:
    """(B, K, 2) those of an index (B, K) among (B, Q, 2)."""
    return places_m.gather(1, index[..., None].expand(-1, -1, 2))
