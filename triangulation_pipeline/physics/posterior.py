"""The exact posterior of a transmitter's position under the simulator's own model: no estimator has a smaller RMSE than
its mean, and no predicted density a higher expected logarithm.

Rows with two arrival times or more are integrated by adaptive multiple importance sampling with fixed quasi-random
points (Cornuet et al. 2012; mixture weights as in Owen and Zhou 2000). Rows with fewer carry no time difference and are
summed over the cells of a grid.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from triangulation_pipeline.measurements import Measurements
from triangulation_pipeline.physics.geometry import Geometry, covariance_m2, time_difference_information
from triangulation_pipeline.physics.likelihood import Levels, Target
from triangulation_pipeline.physics.scenario import Scenario
from triangulation_pipeline.positions.points import Positions
from triangulation_pipeline.positions.student_t import log_sum

Float = NDArray[np.float64]
Bool = NDArray[np.bool_]

# Rows are drawn for until their weights are worth so many independent draws, in at most so many rounds.
LEAST_EFFECTIVE_DRAWS = 200
_MAX_ROUNDS = 8
# Places around which the first draws of a row lie, by its arrival times: two leave a hyperbola, three may have two
# solutions, or a hyperbola in all but name; with as many as the last or more there is one valley, with side valleys.
_CENTRES = {2: 64, 3: 64, 4: 24, 5: 8}
MANY_ARRIVAL_TIMES = max(_CENTRES)
_FIRST_DRAWS, _MAX_DRAWS = 256, 4096
_BLOCK_VALUES = 100_000

_FREEDOM = 4.0  # of the proposals; their densities need no transcendental function
_START_SPREADS, _START_SHARES = (1.3, 4.0, 12.0), (0.5, 0.3, 0.2)
_KERNELS, _KERNEL_SPREADS = 24, (1.2, 2.5)
_SEARCH_SCALE_M = 3000.0
_REFINEMENT_SCALES_M = (1000.0, 300.0, 100.0, 30.0, 10.0, 0.0, 0.0)


@dataclass(frozen=True)
class Posterior(Positions):
    """Posterior mean and covariance of n rows, and the posterior at the one position that was asked about in each.

    ``log_density_at`` is that of the position asked about, in nats per square metre; minus infinity outside the
    service area. ``content_at`` is the probability of the region whose density is higher than there.
    ``effective_draws`` says how exact a row is: it is worth so many independent draws, at least 200 but in the hardest
    rows. It is infinite for a row that was summed over cells. If the model covers no place at all, or no draw found the
    place of a row (one in some thousands of rows without delayed paths), everything is NaN.
    """

    log_density_at: Float  # (n,)
    content_at: Float  # (n,)
    effective_draws: Float  # (n,)

    def covers(self, level: float) -> Bool:
        """(n,) whether the position asked about lies in the highest-density region of probability ``level``."""
        return self.content_at <= level


def exact_posterior(
    geometry: Geometry,
    measurements: Measurements,
    scenario: Scenario,
    at_en_m: Float,
    cells: int = 32,
) -> Posterior:
    """Posterior of the position by arrival times, levels and non-detections, under the model that the simulator draws
    from.

    The prior is uniform over the service area. The time of emission has a flat prior and is integrated out by the
    trapezoidal rule. The level that is common to a transmission (power class and common shadowing) is summed over a
    fine grid, the shadowing and the residual gain of each link are Gaussian, and a non-detection counts with its
    probability. Knife edges are not modelled.

    Parameters
    ----------
    geometry : Geometry
        The network, and the altitude of the transmitters.
    measurements : Measurements
        n rows of that network, calibrated.
    scenario : Scenario
        The noise and propagation that produced them.
    at_en_m : ndarray, shape (n, 2)
        The position in each row at which density and content are asked, metres. The other answers do not depend on it.
    cells : int
        Cells of the grid per side, for rows without a time difference. The search in other rows begins with half.

    Returns
    -------
    Posterior
        n rows. Each is independent of the others.
    """
    n = len(measurements)
    columns = {field.name: np.full(n, np.nan) for field in fields(Posterior)}
    columns |= {"en_m": np.full((n, 2), np.nan), "covariance_m2": np.full((n, 2, 2), np.nan)}
    levels = Levels.of(scenario, int(measurements.num_detections.max(initial=1)))
    area = geometry.network.service_area(scenario.area_margin_m)
    count = np.clip(measurements.toa_present.sum(1), 1, MANY_ARRIVAL_TIMES)
    size = max(1, _BLOCK_VALUES // (cells * cells * 8))
    for number in np.unique(count):
        rows = np.flatnonzero(count == number)
        for block in (rows[i : i + size] for i in range(0, len(rows), size)):
            target = Target.of(geometry, measurements, block, levels, scenario.excess_delay, area)
            if number == 1:
                found = _on_grid(target, at_en_m[block], cells)
            else:
                found = _by_draws(target, at_en_m[block], cells, _CENTRES[int(number)])
            for name, column in columns.items():
                column[block] = getattr(found, name)
    return Posterior(**columns)


def _on_grid(target: Target, at_en_m: Float, cells: int) -> Posterior:
    """By a sum over the cells of the service area."""
    cell_en_m = np.broadcast_to(target.area.cell_centres(cells), (len(at_en_m), cells * cells, 2))
    area = target.area
    cell_m2 = (area.east_max_m - area.east_min_m) * (area.north_max_m - area.north_min_m) / cells**2
    log_density = target.log_density(cell_en_m)
    return _summed(target, at_en_m, cell_en_m, log_density, np.log(cell_m2), np.inf)


def _summed(
    target: Target, at_en_m: Float, en_m: Float, log_density: Float, log_measure: Float | float, draws: Float | float
) -> Posterior:
    """The posterior by points (b, s, 2) that stand for areas of ``exp(log_measure)`` square metres."""
    log_weight = log_density + log_measure
    log_total = log_sum(log_weight)
    with np.errstate(invalid="ignore"):
        weight = np.exp(log_weight - log_total[:, None])
        mean_en_m = (weight[..., None] * en_m).sum(1)
        apart_m = en_m - mean_en_m[:, None]
        at = target.log_density(at_en_m[:, None])
        return Posterior(
            mean_en_m,
            np.einsum("bs,bsi,bsj->bij", weight, apart_m, apart_m),
            np.where(np.isfinite(log_total), at[:, 0] - log_total, np.nan),
            np.where(np.isfinite(log_total), (weight * (log_density > at)).sum(1), np.nan),
            np.broadcast_to(draws, len(en_m)),
        )


@dataclass(frozen=True)
class _Proposal:
    """Mixtures of c bivariate Student's t with four degrees of freedom, for b rows."""

    mean_en_m: Float  # (b, c, 2)
    scale_m2: Float  # (b, c, 2, 2)
    share: Float  # (b, c)

    def take(self, rows: NDArray[np.int64]) -> "_Proposal":
        return _Proposal(self.mean_en_m[rows], self.scale_m2[rows], self.share[rows])

    def draw(self, number: int, begin: int) -> Float:
        """(b, number, 2) positions, by the points ``begin`` and following of a quasi-random sequence."""
        which, radius, angle = _quasi_random(number, begin)
        # Each component has one stretch of the first coordinate.
        index = np.stack([np.searchsorted(ends[:-1], which) for ends in np.cumsum(self.share, axis=1)])
        mean_en_m = np.take_along_axis(self.mean_en_m, index[..., None], 1)
        ee, nn, en = (np.take_along_axis(self.scale_m2[..., i, j], index, 1) for i, j in ((0, 0), (1, 1), (0, 1)))
        distance = np.sqrt(_FREEDOM * ((1 - radius) ** (-2 / _FREEDOM) - 1))
        east, north = distance * np.cos(2 * np.pi * angle), distance * np.sin(2 * np.pi * angle)
        root = np.sqrt(ee)
        across = np.sqrt(np.maximum(nn - en * en / ee, 0.0))
        return mean_en_m + np.stack([root * east, en / root * east + across * north], axis=-1)

    def density(self, en_m: Float) -> Float:
        """(b, s) per square metre, at positions (b, s, 2)."""
        total = np.zeros(en_m.shape[:-1])
        ee, nn, en = self.scale_m2[..., 0, 0], self.scale_m2[..., 1, 1], self.scale_m2[..., 0, 1]
        determinant = ee * nn - en * en
        factor = self.share / (2 * np.pi * np.sqrt(determinant))
        for c in range(self.share.shape[1]):
            of = (slice(None), c, None)
            east, north = (en_m[..., i] - self.mean_en_m[:, c, i, None] for i in (0, 1))
            squared = (nn[of] * east - 2 * en[of] * north) * east + ee[of] * north * north
            total += factor[of] / (1 + squared / (determinant[of] * _FREEDOM)) ** 3
        return total


def _quasi_random(number: int, begin: int) -> Float:
    """(3, number) points of the additive recurrence with powers of the root of x^4 = x + 1 (Roberts 2018)."""
    root = 1.2207440846057596
    return (0.5 + (begin + 1 + np.arange(number)) * root ** -np.arange(1.0, 4.0)[:, None]) % 1


def _by_draws(target: Target, at_en_m: Float, cells: int, centres: int) -> Posterior:
    """By importance sampling: first around the places that a search finds, then around the best draws so far."""
    b = len(at_en_m)
    columns = {field.name: np.full(b, np.nan) for field in fields(Posterior)}
    columns |= {"en_m": np.full((b, 2), np.nan), "covariance_m2": np.full((b, 2, 2), np.nan)}
    rows, proposal = np.arange(b), _first_proposal(target, cells, centres)
    begin, number = 0, _FIRST_DRAWS
    en_m, log_density = np.zeros((b, 0, 2)), np.zeros((b, 0))
    density = np.zeros((b, 0))  # of all draws so far, as if from one mixture
    before: list[tuple[int, _Proposal]] = []
    for turn in range(_MAX_ROUNDS):
        drawn_en_m = proposal.draw(number, begin)
        before.append((number, proposal))
        density = np.concatenate(
            [
                density + number * proposal.density(en_m),
                sum((count * made.density(drawn_en_m) for count, made in before), np.zeros(drawn_en_m.shape[:-1])),
            ],
            axis=1,
        )
        log_density = np.concatenate([log_density, _in_parts(target, drawn_en_m)], axis=1)
        en_m = np.concatenate([en_m, drawn_en_m], axis=1)
        log_weight = log_density - np.log(density)
        log_weight -= np.maximum(log_weight.max(1, keepdims=True), -1e300)
        weight = np.exp(log_weight)
        effective = weight.sum(1) ** 2 / np.maximum((weight * weight).sum(1), 1e-300)
        done = (effective >= LEAST_EFFECTIVE_DRAWS) & (turn > 0) | (turn == _MAX_ROUNDS - 1)
        if done.any():
            part = np.flatnonzero(done)
            found = _summed(
                target.take(part),
                at_en_m[rows[part]],
                en_m[part],
                log_density[part],
                -np.log(density[part]),
                effective[part],
            )
            for name, column in columns.items():
                column[rows[part]] = getattr(found, name)
            if done.all():
                break
        going = np.flatnonzero(~done)
        rows, target, weight = rows[going], target.take(going), weight[going]
        en_m, log_density, density = en_m[going], log_density[going], density[going]
        before = [(count, made.take(going)) for count, made in before]
        proposal = _next_proposal(target, en_m, weight, _KERNELS * 2 ** max(0, turn - 1))
        begin += number
        number = min(_MAX_DRAWS, number * (2 if turn > 0 else 1))
    return Posterior(**columns)


def _in_parts(target: Target, en_m: Float) -> Float:
    """``target.log_density`` in parts of rows that fit into the cache."""
    size = max(1, _BLOCK_VALUES // (en_m.shape[1] * 40))
    parts: Iterator[NDArray[np.int64]] = (np.arange(i, min(i + size, len(en_m))) for i in range(0, len(en_m), size))
    return np.concatenate([target.take(part).log_density(en_m[part]) for part in parts])


def _first_proposal(target: Target, cells: int, centres: int) -> _Proposal:
    """Around the places that a robust search finds: the best cells of the area, each refined."""
    b = len(target.power_dbm)
    cell_en_m = np.broadcast_to(target.area.cell_centres(cells), (b, cells * cells, 2))
    distance_m, _ = target.geometry.ranges_m(cell_en_m)
    timed_m = np.take_along_axis(distance_m, target.timed[:, None], -1)
    residual_m, _ = _centred(target, target.range_m[:, None] - timed_m, _SEARCH_SCALE_M)
    by_time = ((target.weight > 0)[:, None] * np.log1p((residual_m / _SEARCH_SCALE_M) ** 2)).sum(-1)
    by_level = target.levels.log_likelihood(distance_m, target.power_dbm, target.present)
    best = np.argpartition(by_time - by_level, centres, axis=1)[:, :centres]
    en_m = np.take_along_axis(cell_en_m, best[..., None], 1)
    cell_m = target.area.diagonal_m / cells
    for scale_m in _REFINEMENT_SCALES_M:
        distance_m, gradient = target.to_timed(en_m)
        residual_m, weight = _centred(target, target.range_m[:, None] - distance_m, scale_m)
        step_m = _step_m(gradient, residual_m, weight, cell_m)
        step_m *= np.minimum(1.0, cell_m / np.maximum(np.hypot(step_m[..., 0], step_m[..., 1]), 1e-9))[..., None]
        en_m = target.clip(en_m + step_m)
    kernel = _kernel_m2(target, en_m)
    log_mass = target.log_density(en_m) + 0.5 * np.log(np.linalg.det(kernel))
    # Half of the logarithm: the search may have stopped beside a peak.
    share = np.exp(0.5 * (log_mass - np.maximum(log_mass.max(1, keepdims=True), -1e300))) + 0.02
    share /= share.sum(1, keepdims=True)
    return _Proposal(
        np.concatenate([en_m] * len(_START_SPREADS), axis=1),
        np.concatenate([kernel * spread**2 for spread in _START_SPREADS], axis=1),
        np.concatenate([share * part for part in _START_SHARES], axis=1),
    )


def _next_proposal(target: Target, en_m: Float, weight: Float, kernels: int) -> _Proposal:
    """Around ``kernels`` of the draws, picked by their weights."""
    total = np.cumsum(weight, axis=1)
    marks = (np.arange(kernels) + 0.5) / kernels * total[:, -1:]
    picked = np.stack([np.searchsorted(ends[:-1], mark) for ends, mark in zip(total, marks, strict=True)])
    centre_en_m = target.clip(np.take_along_axis(en_m, picked[..., None], 1))
    spread = np.resize(_KERNEL_SPREADS, kernels)[:, None, None]
    share = np.full(picked.shape, 1 / kernels)
    return _Proposal(centre_en_m, _kernel_m2(target, centre_en_m) * spread**2, share)


def _kernel_m2(target: Target, en_m: Float) -> Float:
    """(b, c, 2, 2) covariances by arrival times without delays. Along a hyperbola it is no longer than the hyperbola is
    straight: the deviation ``l^2 / 2 d`` at the distance d of the sites stays within the width."""
    distance_m, gradient = target.to_timed(en_m)
    information = time_difference_information(gradient, target.weight[:, None])
    width_m = 1 / np.sqrt(np.maximum(np.trace(information, axis1=-2, axis2=-1), 1e-12))
    count = np.maximum((target.weight > 0).sum(1), 1)[:, None]
    far_m = ((target.weight > 0)[:, None] * distance_m).sum(-1) / count
    return covariance_m2(information + np.eye(2) / (width_m * far_m)[..., None, None])


def _step_m(gradient: Float, residual_m: Float, weight: Float, longest_m: float) -> Float:
    """(b, c, 2) one damped Gauss-Newton step."""
    information = time_difference_information(gradient, weight) + np.eye(2) / longest_m**2
    middle = (weight[..., None] * gradient).sum(-2, keepdims=True) / weight.sum(-1)[..., None, None]
    pull = ((weight * residual_m)[..., None] * (gradient - middle)).sum(-2)
    return np.einsum("bcij,bcj->bci", covariance_m2(information), pull)


def _centred(target: Target, residual_m: Float, scale_m: float) -> tuple[Float, Float]:
    """Residuals (b, s, k) less the time of emission, by a reweighted mean, and their Cauchy weights, 1 / m^2."""
    variance = (target.sigma_m**2 + scale_m**2)[:, None]
    prior = (target.weight > 0)[:, None] / variance
    weight = prior
    for _ in range(3):
        centred_m = residual_m - ((weight * residual_m).sum(-1) / weight.sum(-1))[..., None]
        weight = prior / (1 + centred_m * centred_m / variance)
    return centred_m, weight
