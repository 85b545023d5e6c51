"""The model beside its rivals and the physical limits, on the same rows and with the same site-bias estimates."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from triangulation_pipeline.network import ReceiverNetwork
from triangulation_pipeline.physics.geometry import Geometry
from triangulation_pipeline.physics.level import level_posterior_mean
from triangulation_pipeline.physics.mixture import mixture_crlb_m, mixture_maximum_likelihood
from triangulation_pipeline.physics.scenario import Features, Scenario
from triangulation_pipeline.physics.simulator import site_constants
from triangulation_pipeline.physics.solvers import Loss, fit_site_biases_ns, gauss_newton, power_weighted_centroid
from triangulation_pipeline.positions import Positions, coverage, distance_statistics, rmse_m
from triangulation_pipeline.samples import Samples

Float = NDArray[np.float64]
Summary = dict[str, Any]  # what json.dumps takes, NaN excluded

COVERED = {"coverage_50": 0.5, "coverage_68": 0.683, "coverage_90": 0.9, "coverage_95": 0.95}
TRIMMED_AT = 0.99
# Of chi-square with two degrees of freedom: 2 ln 2, 2, and the mean below its 99 % point.
NEES_EXPECTED = {"nees_p50": 1.386294, "nees_mean": 2.0, "nees_trimmed_mean": 1.906965}
SIGMA_BINS = 5
RETAINED = (1.0, 0.99, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)


class Estimator(StrEnum):
    """Who locates. The Gauss-Newton and mixture ones need arrival times."""

    model = "model"
    power_weighted_centroid = "power_weighted_centroid"
    gauss_newton = "gauss_newton"
    huber_gauss_newton = "huber_gauss_newton"
    mixture_ml = "mixture_ml"
    mixture_ml_from_truth = "mixture_ml_from_truth"
    level_posterior_mean = "level_posterior_mean"


class Subset(StrEnum):
    """Which test rows: all, or those with a GDOP below the limit."""

    all = "all"
    good_geometry = "good_geometry"


@dataclass(frozen=True)
class Comparison:
    """What every estimator does on n test rows.

    ``distance_m`` is NaN on a row without a fix; the whole entry is None for an estimator that does not exist for the
    scenario. ``nees`` is NaN, and counts as outside every ellipse, where the model gives no number or a covariance that
    is not positive definite. Bounds are NaN where they do not exist.
    """

    max_gdop: float
    ceiling: Estimator  # the best that is reachable here
    truth_en_m: Float  # (n, 2)
    distance_m: dict[Estimator, Float | None]  # (n,) each, haversine
    nees: Float  # (n,)
    predicted_rms_m: Float  # (n,) sqrt of the trace of the model's covariance
    crlb_m: Float  # (n,) Gaussian, levels and arrival times
    mixture_crlb_m: Float  # (n,) with delayed paths, arrival times alone
    detections: NDArray[np.int64]  # (n,)
    good_geometry: NDArray[np.bool_]  # (n,)

    def rows(self, subset: Subset) -> NDArray[np.bool_]:
        """(n,) the rows of a subset."""
        return self.good_geometry if subset is Subset.good_geometry else np.ones(len(self.nees), bool)

    def common_rows(self, subset: Subset) -> NDArray[np.bool_]:
        """(n,) the rows of a subset on which every estimator that exists has a fix."""
        found = [np.isfinite(distance) for distance in self.distance_m.values() if distance is not None]
        return self.rows(subset) & np.all(found, axis=0)

    def summary(self) -> Summary:
        """Everything in numbers, ready for JSON: None for no data, never NaN.

        By subset (``all``, ``good_geometry``): ``estimators`` has each one's ``distance_statistics`` over the rows it
        has a fix on, ``on_common_rows`` the same over the rows all have one on, ``ratios`` the model over bounds and
        rivals on those common rows; then the model's calibration, by predicted rms error and by number of detections,
        and its RMSE when only the rows it is surest of are kept.
        """
        return {
            "max_gdop": self.max_gdop,
            "ceiling": self.ceiling.value,
            "nees_expected": NEES_EXPECTED,
            **{subset.value: self._subset_summary(subset) for subset in Subset},
        }

    def _subset_summary(self, subset: Subset) -> Summary:
        rows, common = self.rows(subset), self.common_rows(subset)
        estimators: Summary = {}
        on_common: Summary = {}
        for estimator, distance in self.distance_m.items():
            if distance is None:
                estimators[estimator.value] = on_common[estimator.value] = None
                continue
            found = rows & np.isfinite(distance)
            missing = int(rows.sum() - found.sum())
            estimators[estimator.value] = {**distance_statistics(distance[found]), "rows_without_fix": missing}
            on_common[estimator.value] = distance_statistics(distance[common])
        return {
            "rows": int(rows.sum()),
            "estimators": estimators,
            "common_rows": int(common.sum()),
            "on_common_rows": on_common,
            **self._bounds(rows),
            "ratios": _ratios(on_common, self._bounds(common), self.ceiling),
            "calibration": self._calibration(rows),
            "by_predicted_rms": self._by_predicted_rms(rows),
            "by_detections": [
                {"detections": int(count), **self._bin(rows & (self.detections == count))}
                for count in np.unique(self.detections[rows])
            ],
            "selective_risk": self._selective_risk(rows),
        }

    def _bounds(self, rows: NDArray[np.bool_]) -> dict[str, float | None]:
        bounds: dict[str, float | None] = {}
        for name, bound_m in (("crlb", self.crlb_m), ("mixture_crlb", self.mixture_crlb_m)):
            known = bound_m[rows & np.isfinite(bound_m)]
            bounds[f"{name}_rms_m"] = rmse_m(known)
            bounds[f"{name}_p50_m"] = _median(known)
        return bounds

    def _calibration(self, rows: NDArray[np.bool_]) -> dict[str, float | None]:
        nees = self.nees[rows]
        known = nees[np.isfinite(nees)]
        kept = known[known <= np.quantile(known, TRIMMED_AT)] if len(known) else known
        return {
            **{name: coverage(nees, share) for name, share in COVERED.items()},
            "nees_p50": _median(known),
            "nees_mean": _mean(known),
            "nees_trimmed_mean": _mean(kept),
        }

    def _bin(self, rows: NDArray[np.bool_]) -> dict[str, float | int | None]:
        distance, nees = self._model_m[rows], self.nees[rows]
        known = np.isfinite(distance)
        return {
            "count": int(rows.sum()),
            "predicted_rms_m": rmse_m(self.predicted_rms_m[rows & np.isfinite(self.predicted_rms_m)]),
            "rmse_m": rmse_m(distance[known]),
            "p50_m": _median(distance[known]),
            "nees_p50": _median(nees[np.isfinite(nees)]),
            "coverage_95": coverage(nees, 0.95),
        }

    def _by_predicted_rms(self, rows: NDArray[np.bool_]) -> list[dict[str, float | int | None]]:
        """Bins of equal counts, surest first."""
        bins = []
        for part in np.array_split(self._surest_first(rows), SIGMA_BINS):
            if len(part):
                inside = np.zeros(len(rows), bool)
                inside[part] = True
                low, high = self.predicted_rms_m[part[[0, -1]]]
                bins.append({"low_m": float(low), "high_m": float(high), **self._bin(inside)})
        return bins

    def _selective_risk(self, rows: NDArray[np.bool_]) -> list[dict[str, float | int | None]]:
        distance = self._model_m[self._surest_first(rows)]
        counts = [(share, round(share * len(distance))) for share in RETAINED]
        return [{"retained": share, "count": n, "rmse_m": rmse_m(distance[:n])} for share, n in counts if n]

    def _surest_first(self, rows: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Indices of the rows the model locates, by predicted rms error."""
        usable = np.flatnonzero(rows & np.isfinite(self._model_m) & np.isfinite(self.predicted_rms_m))
        return usable[np.argsort(self.predicted_rms_m[usable], kind="stable")]

    @property
    def _model_m(self) -> Float:
        distance = self.distance_m[Estimator.model]
        assert distance is not None
        return distance


def compare(
    network: ReceiverNetwork,
    scenario: Scenario,
    test: Samples,
    train: Samples,
    predicted: Positions,
    max_gdop: float,
) -> Comparison:
    """Runs every rival on the test rows and takes the model's answer.

    Solvers by arrival time share the site biases fitted on ``train`` and start from several places, but
    ``mixture_ml_from_truth``, the reachable ceiling, which starts at the truth; like ``mixture_ml`` it knows the
    scenario's delayed paths. They exist where the scenario gives arrival times and three sites
    or more take them. Elsewhere the ceiling is ``level_posterior_mean``, which knows the scenario and the simulator's
    site gains: fitting these on detected levels alone would bias them, and a ceiling may know the truth.

    Raises ValueError where the model's answer has another number of rows, ``train`` is of another network or
    ``max_gdop`` is not positive.
    """
    n = len(test)
    if len(predicted) != n:
        raise ValueError(f"predicted must have one row a test sample, {n}, it has {len(predicted)}")
    for name, batch in (("test", test), ("train", train)):
        if batch.num_sites != len(network.sites):
            raise ValueError(f"{name} has {batch.num_sites} receivers, the network has {len(network.sites)}")
    if not max_gdop > 0:
        raise ValueError(f"max_gdop must be above 0, got {max_gdop}")

    geometry = Geometry(network, test.tx_altitude_m)
    truth_en_m = test.tx_en_m(network.frame)
    found: dict[Estimator, Positions | None] = dict.fromkeys(Estimator)
    found[Estimator.model] = predicted
    found[Estimator.power_weighted_centroid] = power_weighted_centroid(network, test)
    mixture_bound_m = np.full(n, np.nan)
    if scenario.features is Features.rss_tdoa and network.locates_by_time:
        bias_ns, delay = fit_site_biases_ns(Geometry(network, train.tx_altitude_m), train), scenario.excess_delay
        found[Estimator.gauss_newton] = gauss_newton(geometry, test, bias_ns, Loss.linear)
        found[Estimator.huber_gauss_newton] = gauss_newton(geometry, test, bias_ns, Loss.huber)
        found[Estimator.mixture_ml] = mixture_maximum_likelihood(geometry, test, bias_ns, delay)
        found[Estimator.mixture_ml_from_truth] = mixture_maximum_likelihood(geometry, test, bias_ns, delay, truth_en_m)
        mixture_bound_m = mixture_crlb_m(geometry, truth_en_m, test, delay)
        ceiling = Estimator.mixture_ml_from_truth
    else:
        gains_db = site_constants(network, scenario).gain_offset_db
        found[Estimator.level_posterior_mean] = level_posterior_mean(network, test, scenario, gains_db)
        ceiling = Estimator.level_posterior_mean
    return Comparison(
        max_gdop=max_gdop,
        ceiling=ceiling,
        truth_en_m=truth_en_m,
        distance_m={
            estimator: None
            if positions is None
            else positions.error_m(network.frame, test.tx_altitude_m, test.tx_lat, test.tx_lon)
            for estimator, positions in found.items()
        },
        nees=predicted.nees(truth_en_m),
        predicted_rms_m=predicted.rms_m(),
        crlb_m=test.crlb_m.astype(np.float64),
        mixture_crlb_m=mixture_bound_m,
        detections=test.num_detections,
        good_geometry=test.gdop < max_gdop,
    )


def _ratios(on_common: Summary, bounds: dict[str, float | None], ceiling: Estimator) -> dict[str, float | None]:
    """The model over what it is held against, all on the same rows."""
    model = on_common[Estimator.model.value]

    def over(key: str, other: float | None) -> float | None:
        return None if model[key] is None or not other else model[key] / other

    def over_rival(keys: Iterable[str], name: str, rival: dict[str, float | None] | None) -> dict[str, float | None]:
        return {f"{key}_over_{name}": over(f"{key}_m", None if rival is None else rival[f"{key}_m"]) for key in keys}

    return {
        "p50_over_crlb_p50": over("p50_m", bounds["crlb_p50_m"]),
        "rmse_over_crlb_rms": over("rmse_m", bounds["crlb_rms_m"]),
        "p50_over_mixture_crlb_p50": over("p50_m", bounds["mixture_crlb_p50_m"]),
        "rmse_over_mixture_crlb_rms": over("rmse_m", bounds["mixture_crlb_rms_m"]),
        **over_rival(("p50", "p95", "rmse"), "ceiling", on_common[ceiling.value]),
        **over_rival(("p50", "p95", "rmse"), "huber", on_common[Estimator.huber_gauss_newton.value]),
    }


def _median(values: Float) -> float | None:
    return float(np.median(values)) if len(values) else None


def _mean(values: Float) -> float | None:
    return float(np.mean(values)) if len(values) else None
