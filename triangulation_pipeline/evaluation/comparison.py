"""The model beside the baselines and the physical limits, on the same rows and with the same site biases."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from triangulation_pipeline.evaluation.estimators import (
    ESTIMATORS,
    HUBER_GAUSS_NEWTON,
    MODEL,
    Estimator,
    Float,
    Problem,
)
from triangulation_pipeline.evaluation.reference import Reference, reference
from triangulation_pipeline.evaluation.summary import (
    COVERAGE_LEVELS,
    Bounds,
    Calibration,
    DetectionsBin,
    ErrorStatistics,
    EstimatorErrors,
    PredictedRmsBin,
    Ratios,
    RetainedRisk,
    Subset,
    SubsetSummary,
    Summary,
)
from triangulation_pipeline.network import ReceiverNetwork
from triangulation_pipeline.physics.geometry import Geometry
from triangulation_pipeline.physics.scenario import Scenario
from triangulation_pipeline.positions import Positions, coverage, distance_statistics, rmse_m
from triangulation_pipeline.samples import Samples

Rows = NDArray[np.bool_]

TRIMMED_AT = 0.99
# Of chi-square with two degrees of freedom: 2 ln 2, 2, and the mean below its 99 % point.
NEES_EXPECTED = {"nees_p50": 1.386294, "nees_mean": 2.0, "nees_trimmed_mean": 1.906965}
PREDICTED_RMS_BINS = 5
RETAINED = (1.0, 0.99, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)


@dataclass(frozen=True)
class Comparison:
    """The errors of every estimator on n test rows.

    ``distance_m`` is NaN on a row without a fix; the whole entry is None for an estimator that does not exist in the
    scenario. ``nees`` is NaN, and counts as outside every ellipse, if the model gives no number or a covariance that is
    not positive definite. Bounds are NaN on rows that have none.
    """

    max_gdop: float
    truth_en_m: Float  # (n, 2)
    distance_m: dict[Estimator, Float | None]  # (n,) each, haversine
    nees: Float  # (n,)
    predicted_rms_m: Float  # (n,) sqrt of the trace of the model's covariance
    reference: Reference  # the exact posterior, on some of the rows
    crlb_m: Float  # (n,) Gaussian, levels and arrival times
    mixture_crlb_m: Float  # (n,) with delayed paths, arrival times alone
    num_detections: NDArray[np.int64]  # (n,)
    good_geometry: Rows  # (n,)

    def rows(self, subset: Subset) -> Rows:
        """(n,) the rows of a subset."""
        return self.good_geometry if subset is Subset.good_geometry else np.ones(len(self.nees), bool)

    def common_rows(self, subset: Subset) -> Rows:
        """(n,) the rows of a subset that every estimator located."""
        found = [np.isfinite(distance) for distance in self.distance_m.values() if distance is not None]
        return self.rows(subset) & np.all(found, axis=0)

    @property
    def model_m(self) -> Float:
        """(n,) errors of the model, metres."""
        distance = self.distance_m[MODEL]
        assert distance is not None
        return distance

    @property
    def has_arrival_times(self) -> bool:
        """Whether the estimators that need arrival times exist."""
        return self.distance_m.get(HUBER_GAUSS_NEWTON) is not None

    def summary(self) -> Summary:
        """All numbers of the comparison, on all rows and on those with good geometry."""
        return Summary(
            max_gdop=self.max_gdop,
            nees_expected=NEES_EXPECTED,
            all=self._subset_summary(Subset.all),
            good_geometry=self._subset_summary(Subset.good_geometry),
        )

    def _subset_summary(self, subset: Subset) -> SubsetSummary:
        rows, common = self.rows(subset), self.common_rows(subset)
        on_common = {
            estimator.name: None if distance is None else _statistics(distance[common])
            for estimator, distance in self.distance_m.items()
        }
        return SubsetSummary(
            rows=int(rows.sum()),
            estimators={e.name: _errors(distance, rows) for e, distance in self.distance_m.items()},
            common_rows=int(common.sum()),
            on_common_rows=on_common,
            **dict(self._bounds(rows)),
            ratios=_ratios(on_common, self._bounds(common)),
            exact_posterior=self.reference.summary(rows, self.model_m, self.nees),
            calibration=self._calibration(rows),
            by_predicted_rms=self._by_predicted_rms(rows),
            by_detections=[
                DetectionsBin(num_detections=int(count), **self._bin(rows & (self.num_detections == count)))
                for count in np.unique(self.num_detections[rows])
            ],
            selective_risk=self._selective_risk(rows),
        )

    def _bounds(self, rows: Rows) -> Bounds:
        crlb_m, mixture_crlb_m = (
            bound_m[rows & np.isfinite(bound_m)] for bound_m in (self.crlb_m, self.mixture_crlb_m)
        )
        return Bounds(
            crlb_rms_m=rmse_m(crlb_m),
            crlb_p50_m=_median(crlb_m),
            mixture_crlb_rms_m=rmse_m(mixture_crlb_m),
            mixture_crlb_p50_m=_median(mixture_crlb_m),
        )

    def _calibration(self, rows: Rows) -> Calibration:
        nees = self.nees[rows]
        known = nees[np.isfinite(nees)]
        kept = known[known <= np.quantile(known, TRIMMED_AT)] if len(known) else known
        return Calibration(
            **{name: coverage(nees, level) for name, level in COVERAGE_LEVELS.items()},
            nees_p50=_median(known),
            nees_mean=_mean(known),
            nees_trimmed_mean=_mean(kept),
        )

    def _bin(self, rows: Rows) -> dict[str, float | int | None]:
        distance, nees = self.model_m[rows], self.nees[rows]
        known = np.isfinite(distance)
        return {
            "count": int(rows.sum()),
            "predicted_rms_m": rmse_m(self.predicted_rms_m[rows & np.isfinite(self.predicted_rms_m)]),
            "rmse_m": rmse_m(distance[known]),
            "p50_m": _median(distance[known]),
            "nees_p50": _median(nees[np.isfinite(nees)]),
            "coverage_95": coverage(nees, 0.95),
        }

    def _by_predicted_rms(self, rows: Rows) -> list[PredictedRmsBin]:
        """Bins of equal counts, the surest first."""
        bins = []
        for part in np.array_split(self._surest_first(rows), PREDICTED_RMS_BINS):
            if len(part):
                inside = np.zeros(len(rows), bool)
                inside[part] = True
                low, high = self.predicted_rms_m[part[[0, -1]]]
                bins.append(PredictedRmsBin(low_m=float(low), high_m=float(high), **self._bin(inside)))
        return bins

    def _selective_risk(self, rows: Rows) -> list[RetainedRisk]:
        distance = self.model_m[self._surest_first(rows)]
        counts = [(fraction, round(fraction * len(distance))) for fraction in RETAINED]
        return [RetainedRisk(retained=fraction, count=n, rmse_m=rmse_m(distance[:n])) for fraction, n in counts if n]

    def _surest_first(self, rows: Rows) -> NDArray[np.int64]:
        """Indices of the rows that the model located, by predicted rms error."""
        usable = np.flatnonzero(rows & np.isfinite(self.model_m) & np.isfinite(self.predicted_rms_m))
        return usable[np.argsort(self.predicted_rms_m[usable], kind="stable")]


def compare(
    network: ReceiverNetwork, scenario: Scenario, test: Samples, train: Samples, predicted: Positions, max_gdop: float
) -> Comparison:
    """Runs every estimator of ``ESTIMATORS`` that exists in the scenario on the test rows.

    The solvers that use arrival times share the site biases fitted on ``train``. The reference is the exact posterior,
    which knows the scenario and the simulator's constants of the sites: nothing can be better on average. It is
    computed on some of the rows, see ``reference_rows``.

    Parameters
    ----------
    network : ReceiverNetwork
        The r receivers.
    scenario : Scenario
        The scenario of the samples.
    test : Samples
        n rows of that network, which all estimators locate.
    train : Samples
        Other rows of that network, on which site biases are fitted.
    predicted : Positions
        The n positions that the model gives for ``test``.
    max_gdop : float
        Rows with a lower GDOP have good geometry.

    Returns
    -------
    Comparison
        The errors of all estimators, and what is needed to summarise them.

    Raises
    ------
    ValueError
        If the numbers of rows or of receivers do not fit each other, or ``max_gdop`` is not positive.
    """
    _check_inputs(network, test, train, predicted, max_gdop)
    problem = Problem(Geometry(network, test.tx_altitude_m), scenario, test, train, predicted)
    existing = [estimator for estimator in ESTIMATORS if estimator.exists_in(problem)]
    distance_m: dict[Estimator, Float | None] = dict.fromkeys(ESTIMATORS)
    for estimator in existing:
        positions = estimator.locate(problem)
        distance_m[estimator] = positions.error_m(network.frame, test.tx_altitude_m, test.tx_lat, test.tx_lon)
    return Comparison(
        max_gdop=max_gdop,
        truth_en_m=problem.truth_en_m,
        distance_m=distance_m,
        nees=predicted.nees(problem.truth_en_m),
        predicted_rms_m=predicted.rms_m(),
        reference=reference(problem),
        crlb_m=test.crlb_m.astype(np.float64),
        mixture_crlb_m=problem.mixture_crlb_m(),
        num_detections=test.num_detections,
        good_geometry=test.gdop < max_gdop,
    )


def _check_inputs(
    network: ReceiverNetwork, test: Samples, train: Samples, predicted: Positions, max_gdop: float
) -> None:
    if len(predicted) != len(test):
        raise ValueError(f"predicted must have one row per test sample, {len(test)}, it has {len(predicted)}")
    for name, samples in (("test", test), ("train", train)):
        if samples.num_sites != len(network.sites):
            raise ValueError(f"{name} has {samples.num_sites} receivers, the network has {len(network.sites)}")
    if not max_gdop > 0:
        raise ValueError(f"max_gdop must be above 0, got {max_gdop}")


def _statistics(distance_m: Float) -> ErrorStatistics:
    return ErrorStatistics(**distance_statistics(distance_m))


def _errors(distance_m: Float | None, rows: Rows) -> EstimatorErrors | None:
    """The errors on those of the rows that were located; None for an estimator that does not exist."""
    if distance_m is None:
        return None
    found = rows & np.isfinite(distance_m)
    missing = int(rows.sum() - found.sum())
    return EstimatorErrors(**distance_statistics(distance_m[found]), rows_without_fix=missing)


def _ratios(on_common: dict[str, ErrorStatistics | None], bounds: Bounds) -> Ratios:
    """The model divided by what it is compared with, all on the same rows."""
    nothing = _statistics(np.zeros(0))
    model, huber = (on_common[e.name] or nothing for e in (MODEL, HUBER_GAUSS_NEWTON))
    return Ratios(
        p50_over_crlb_p50=_over(model.p50_m, bounds.crlb_p50_m),
        rmse_over_crlb_rms=_over(model.rmse_m, bounds.crlb_rms_m),
        p50_over_mixture_crlb_p50=_over(model.p50_m, bounds.mixture_crlb_p50_m),
        rmse_over_mixture_crlb_rms=_over(model.rmse_m, bounds.mixture_crlb_rms_m),
        p50_over_huber=_over(model.p50_m, huber.p50_m),
        p95_over_huber=_over(model.p95_m, huber.p95_m),
        rmse_over_huber=_over(model.rmse_m, huber.rmse_m),
    )


def _over(mine: float | None, other: float | None) -> float | None:
    return None if mine is None or not other else mine / other


def _median(values: Float) -> float | None:
    return float(np.median(values)) if len(values) else None


def _mean(values: Float) -> float | None:
    return float(np.mean(values)) if len(values) else None
