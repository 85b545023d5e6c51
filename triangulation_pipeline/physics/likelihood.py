"""The likelihood of a row of measurements under the model that the simulator draws from, by position."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import erfcx, log_ndtr, ndtr

from triangulation_pipeline.frame import ServiceArea
from triangulation_pipeline.measurements import Measurements
from triangulation_pipeline.physics.constants import SPEED_OF_LIGHT_M_PER_NS
from triangulation_pipeline.physics.geometry import Geometry
from triangulation_pipeline.physics.propagation import distance_range_km, path_loss_function
from triangulation_pipeline.physics.scenario import ExcessDelay, Scenario
from triangulation_pipeline.positions.student_t import log_sum

Float = NDArray[np.float64]
Bool = NDArray[np.bool_]

# A time step of 1.4 standard deviations leaves a relative error of exp(-2 pi^2 / 1.4^2) = 4e-5 in the integral of a
# Gaussian (the trapezoidal rule; Trefethen and Weideman 2014).
_STEP_SIGMAS = 1.4
_LINEAR_STEPS = 20.0
_DEAF_SIGMAS = 5.0
_TAIL = 30.0  # beyond so many sigmas a delayed arrival's density is an exponential


@dataclass(frozen=True)
class Levels:
    """What a scenario says of levels and detections."""

    scenario: Scenario
    node_dbm: Float  # (q,) of the common level
    log_prior: Float  # (q,)

    @classmethod
    def of(cls, scenario: Scenario, detections: int) -> "Levels":
        """Those of rows with so many detections at most: nodes are no further apart than the common level is known."""
        node_dbm, log_prior = _common_level(scenario, scenario.link_level_sigma_db / np.sqrt(max(detections, 1)))
        return cls(scenario, node_dbm, log_prior)

    def log_likelihood(self, distance_m: Float, power_dbm: Float, present: Bool) -> Float:
        """(b, s) of calibrated levels (b, r) for distances (b, s, r), up to a constant of the row; minus infinity if
        the path-loss model does not cover a distance. A receiver that detected nothing has its noise floor as level.
        What is NaN says nothing."""
        distance_km = distance_m / 1e3
        antennas_db = self.scenario.tx_antenna_gain_dbi + self.scenario.rx_antenna_gain_dbi
        median_db = antennas_db - path_loss_function(self.scenario)(distance_km)
        heard = (present & np.isfinite(power_dbm))[:, None]
        common_dbm = np.where(heard, power_dbm[:, None] - median_db, 0.0)  # the common level by each link alone
        squares, total = (common_dbm * common_dbm).sum(-1), common_dbm.sum(-1)
        node = self.node_dbm
        squares = squares[..., None] - 2 * total[..., None] * node + heard.sum(-1)[..., None] * node * node
        log_joint = self.log_prior - 0.5 * squares / self.scenario.link_level_sigma_db**2
        width_db = np.hypot(self.scenario.link_level_sigma_db, self.scenario.detection_width_db)
        for site in np.flatnonzero(~present.all(0)):
            threshold_dbm = power_dbm[:, site, None] + self.scenario.detection_threshold_db
            margin_db = median_db[..., site] - threshold_dbm
            # Far from a site it is no news that it hears nothing.
            near = ~present[:, site, None] & (margin_db + node[-1] > -_DEAF_SIGMAS * width_db)
            log_joint[near] += log_ndtr(-(margin_db[near][:, None] + node) / width_db)
        low_km, high_km = distance_range_km(self.scenario.path_loss)
        covered = ((distance_km >= low_km) & (distance_km <= high_km)).all(-1)
        return np.where(covered, log_sum(log_joint), -np.inf)


@dataclass(frozen=True)
class Target:
    """The unnormalised posterior of b rows. Arrays of receivers with arrival times hold those alone, the others are
    padded: k is the largest number in a row."""

    geometry: Geometry  # with altitudes (b, 1)
    levels: Levels
    delay: ExcessDelay
    area: ServiceArea
    power_dbm: Float  # (b, r)
    present: Bool  # (b, r)
    timed: NDArray[np.int64]  # (b, k) sites with an arrival time first
    range_m: Float  # (b, k) arrival times as ranges
    sigma_m: Float  # (b, k)
    weight: Float  # (b, k) one over the variance, 0 without an arrival time

    @classmethod
    def of(
        cls,
        geometry: Geometry,
        measurements: Measurements,
        rows: NDArray[np.int64],
        levels: Levels,
        delay: ExcessDelay,
        area: ServiceArea,
    ) -> "Target":
        """Those of some ``rows`` (b,) of calibrated measurements."""
        seen = measurements.take(rows)
        timed = np.argsort(~seen.toa_present, axis=1, kind="stable")[:, : max(1, int(seen.toa_present.sum(1).max()))]
        is_timed = np.take_along_axis(seen.toa_present, timed, 1)
        range_m = SPEED_OF_LIGHT_M_PER_NS * np.take_along_axis(seen.toa_ns, timed, 1)
        sigma_m = SPEED_OF_LIGHT_M_PER_NS * np.take_along_axis(seen.toa_sigma_ns.astype(np.float64), timed, 1)
        # Small numbers: the time of emission is unknown anyway.
        range_m = np.where(is_timed, range_m - range_m[:, :1], 0.0)
        sigma_m = np.where(is_timed, sigma_m, 1.0)
        altitude_m = np.broadcast_to(geometry.altitude_m, len(measurements))[rows, None]
        return cls(
            Geometry(geometry.network, altitude_m),
            levels,
            delay,
            area,
            seen.power_dbm.astype(np.float64),
            seen.signal_present,
            timed,
            range_m,
            sigma_m,
            is_timed / sigma_m**2,
        )

    def take(self, rows: NDArray[np.int64]) -> "Target":
        """Some of the rows."""
        arrays = ("power_dbm", "present", "timed", "range_m", "sigma_m", "weight")
        return Target(
            self.geometry.take(rows),
            self.levels,
            self.delay,
            self.area,
            *(getattr(self, name)[rows] for name in arrays),
        )

    def to_timed(self, en_m: Float) -> tuple[Float, Float]:
        """Distances (b, s, k) of positions (b, s, 2) to the receivers with arrival times, and gradients (..., 2)."""
        distance_m, gradient = self.geometry.ranges_m(en_m)
        timed = self.timed[:, None]
        return np.take_along_axis(distance_m, timed, -1), np.take_along_axis(gradient, timed[..., None], -2)

    def log_density(self, en_m: Float) -> Float:
        """(b, s) at positions (b, s, 2), wherever they are; minus infinity outside the service area."""
        inside_en_m = self.clip(en_m)
        distance_m, _ = self.geometry.ranges_m(inside_en_m)
        found = self.levels.log_likelihood(distance_m, self.power_dbm, self.present)
        if (self.weight > 0).sum(1).max() > 1:
            timed_m = np.take_along_axis(distance_m, self.timed[:, None], -1)
            found = found + self._log_density_of_times(self.range_m[:, None] - timed_m)
        return np.where((inside_en_m == en_m).all(-1), found, -np.inf)

    def clip(self, en_m: Float) -> Float:
        """Positions (..., 2), moved to the border of the service area if they are outside."""
        area = self.area
        return np.clip(en_m, (area.east_min_m, area.north_min_m), (area.east_max_m, area.north_max_m))

    def _log_density_of_times(self, residual_m: Float) -> Float:
        """(b, s): log density of residuals (b, s, k), integrated over the time of emission, up to a constant of the
        row; minus infinity below -700.

        The density of an arrival error of x standard deviations s with the share p of delays of mean m is
        ``exp(-x^2/2) (1 - p + p s/m sqrt(pi/2) erfcx((s/m - x) / sqrt 2))`` over the Gaussian's constant. The nodes
        begin above all that the earliest arrival allows, in equal steps, and widen towards earlier emission.
        """
        present, p = self.weight > 0, self.delay.probability
        mean_m = SPEED_OF_LIGHT_M_PER_NS * self.delay.mean_ns
        largest_m = np.where(present, self.sigma_m, 0.0).max(1)
        step_m = _STEP_SIGMAS / np.sqrt(self.weight.sum(1))
        span_m = 10 * largest_m + (12 * mean_m / present.sum(1) if p > 0 else 0.0)
        steps = np.arange(np.ceil(_LINEAR_STEPS * np.arcsinh(span_m / step_m / _LINEAR_STEPS).max()) + 1)
        before_m = step_m[:, None] * _LINEAR_STEPS * np.sinh(steps / _LINEAR_STEPS)
        latest_m = np.where(present[:, None], residual_m + 6 * self.sigma_m[:, None], np.inf).min(-1)
        product = np.broadcast_to(np.cosh(steps / _LINEAR_STEPS), (*latest_m.shape, len(steps))).copy()
        for k in range(residual_m.shape[-1]):
            rows = np.flatnonzero(present[:, k])
            sigma_m = self.sigma_m[rows, k, None, None]
            x = ((residual_m[rows, :, k] - latest_m[rows])[..., None] + before_m[rows, None]) / sigma_m
            ratio = sigma_m / mean_m
            near = np.minimum(x, _TAIL)
            exponent = -0.5 * near * near
            if p > 0:
                exponent -= ratio * (x - near)
                late = p * np.sqrt(np.pi / 2) * ratio
                product[rows] *= np.exp(exponent) * (1 - p + late * erfcx((ratio - near) * np.sqrt(0.5)))
            else:
                product[rows] *= np.exp(-0.5 * x * x)
        with np.errstate(divide="ignore"):
            return np.log(product.sum(-1))


def _common_level(scenario: Scenario, resolution_db: float) -> tuple[Float, Float]:
    """Nodes, dBm, no further apart than ``resolution_db``, and their log probability: power class plus shadowing."""
    classes_dbm = np.array(scenario.tx_power_dbm)
    spread_db = 4 * scenario.shadowing_common_db + resolution_db
    low, high = classes_dbm.min() - spread_db, classes_dbm.max() + spread_db
    edges = np.linspace(low, high, int(np.ceil((high - low) / resolution_db)) + 1)
    z = (edges[:, None] - classes_dbm) / max(scenario.shadowing_common_db, 1e-6)
    probability = np.diff(ndtr(z), axis=0) @ np.array(scenario.tx_power_share)
    used = probability > 1e-9
    return ((edges[1:] + edges[:-1]) / 2)[used], np.log(probability[used])
