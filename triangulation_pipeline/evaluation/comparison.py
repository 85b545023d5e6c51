"""The model beside the baselines and the physical limits, on the same rows and with the same calibration."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from triangulation_pipeline.calibration import calibrated
from triangulation_pipeline.evaluation.estimators import (
    BASELINES,
    ESTIMATORS,
    HUBER_GAUSS_NEWTON,
    MODEL,
    Estimator,
    Float,
    Problem,
)
from triangulation_pipeline.evaluation.reference import Reference, reference, reference_rows
from triangulation_pipeline.evaluation.summary import (
    COVERAGE_LEVELS,
    Bounds,
    Coverage,
    ErrorStatistics,
    EstimatorErrors,
    Group,
    PredictedRmsBin,
    Ratios,
    RetainedRisk,
    Subset,
    SubsetSummary,
    Summary,
)
from triangulation_pipeline.network import LEAST_ARRIVAL_TIMES
from triangulation_pipeline.physics.dataset_spec import DatasetSpec
from triangulation_pipeline.physics.geometry import inside_hull
from triangulation_pipeline.positions.mixtures import MixturePositions
from triangulation_pipeline.positions.points import Positions
from triangulation_pipeline.positions.statistics import coverage, distance_statistics, rmse_m
from triangulation_pipeline.samples import Samples

Rows = NDArray[np.bool_]

PREDICTED_RMS_BINS = 5
RETAINED = (1.0, 0.99, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
# Rows with as many arrival times or more are one group.
MANY_ARRIVAL_TIMES = 7
GDOP_EDGES = (2.0, 5.0, 10.0)


@dataclass(frozen=True)
class Comparison:
    """The errors of every estimator on n test rows.

    ``distance_m`` is NaN on a row without a fix; the whole entry is None for an estimator that does not exist. Bounds
    are NaN on rows that have none.
    """

    max_gdop: float
    truth_en_m: Float  # (n, 2) in the frame of each row's network
    distance_m: dict[Estimator, Float | None]  # (n,) each, haversine
    content: Float  # (n,) probability of the model's region that is denser than the truth; NaN without a position
    predicted_rms_m: Float  # (n,) sqrt of the trace of the model's covariance
    reference: Reference  # the exact posterior, on some of the rows
    crlb_m: Float  # (n,) Gaussian, levels and arrival times
    mixture_crlb_m: Float  # (n,) with delayed paths, arrival times alone
    gdop: Float  # (n,) NaN if there is none
    num_arrival_times: NDArray[np.int64]  # (n,)
    inside_hull: Rows  # (n,) whether the truth lies within the convex hull of the sites

    @property
    def good_geometry(self) -> Rows:
        """(n,) the rows with a GDOP below the limit."""
        return self.gdop < self.max_gdop

    def rows(self, subset: Subset) -> Rows:
        """(n,) the rows of a subset."""
        return self.good_geometry if subset is Subset.good_geometry else np.ones(len(self.gdop), bool)

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
            exact_posterior=self.reference.summary(rows, self.model_m, self.content),
            calibration=Coverage(**self._coverage(rows)),
            by_arrival_times=self._groups(rows, self._arrival_times()),
            by_gdop=self._groups(rows, self._gdops()),
            by_hull=self._groups(rows, {"inside": self.inside_hull, "outside": ~self.inside_hull}),
            by_predicted_rms=self._by_predicted_rms(rows),
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

    def _coverage(self, rows: Rows) -> dict[str, float | None]:
        content = self.content[rows]
        return {name: coverage(content, level) for name, level in COVERAGE_LEVELS.items()}

    def _arrival_times(self) -> dict[str, Rows]:
        """The rows of each group by number of arrival times."""
        number = self.num_arrival_times
        between = range(LEAST_ARRIVAL_TIMES, MANY_ARRIVAL_TIMES)
        return {
            f"fewer than {LEAST_ARRIVAL_TIMES}": number < LEAST_ARRIVAL_TIMES,
            **{str(times): number == times for times in between},
            f"{MANY_ARRIVAL_TIMES} and more": number >= MANY_ARRIVAL_TIMES,
        }

    def _gdops(self) -> dict[str, Rows]:
        """The rows of each group by GDOP."""
        first, *_, last = GDOP_EDGES
        return {
            f"below {first:g}": self.gdop < first,
            **{f"{low:g} to {high:g}": (self.gdop >= low) & (self.gdop < high) for low, high in pairwise(GDOP_EDGES)},
            f"{last:g} and more": self.gdop >= last,
            "none": np.isnan(self.gdop),
        }

    def _groups(self, rows: Rows, groups: dict[str, Rows]) -> list[Group]:
        """Those of the groups that have rows."""
        return [self._group(name, rows & inside) for name, inside in groups.items() if (rows & inside).any()]

    def _group(self, name: str, rows: Rows) -> Group:
        limit = self.reference.summary(rows, self.model_m, self.content)
        mine_m = self.model_m[rows]
        best = min(
            (
                (float(np.median(np.where(np.isfinite(d), d, np.inf)[rows])), rmse_m(d[rows & np.isfinite(d)]), e.name)
                for e in BASELINES
                if (d := self.distance_m[e]) is not None
            ),
            key=lambda found: found[0],
            default=(np.inf, None, None),
        )
        p50_m, baseline_rmse_m, baseline = best if np.isfinite(best[0]) else (None, None, None)
        return Group(
            name=name,
            count=int(rows.sum()),
            p50_m=_median(mine_m[np.isfinite(mine_m)]),
            rmse_m=rmse_m(mine_m[np.isfinite(mine_m)]),
            best_baseline=baseline,
            best_baseline_p50_m=p50_m,
            best_baseline_rmse_m=baseline_rmse_m,
            posterior_rows=limit.rows,
            rmse_excess=limit.rmse_excess,
            nats_below=limit.nats_below,
            **self._coverage(rows),
        )

    def _by_predicted_rms(self, rows: Rows) -> list[PredictedRmsBin]:
        """Bins of equal counts, the surest first."""
        bins = []
        for part in np.array_split(self._surest_first(rows), PREDICTED_RMS_BINS):
            if len(part):
                predicted_m, distance_m = self.predicted_rms_m[part], self.model_m[part]
                bins.append(
                    PredictedRmsBin(
                        low_m=float(predicted_m[0]),
                        high_m=float(predicted_m[-1]),
                        count=len(part),
                        predicted_rms_m=rmse_m(predicted_m),
                        rmse_m=rmse_m(distance_m),
                        p50_m=_median(distance_m),
                        coverage_95=coverage(self.content[part], 0.95),
                    )
                )
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
    spec: DatasetSpec, test: Samples, train: Samples, predicted: MixturePositions, max_gdop: float
) -> Comparison:
    """Runs every estimator of ``ESTIMATORS`` that exists on the test rows of a dataset.

    All get the same measurements, from which what the network file knows of the sites is subtracted. The reference is
    the exact posterior, which knows the scenario: nothing can be better on average. It is computed on some of the rows,
    see ``reference_rows``.

    Parameters
    ----------
    spec : DatasetSpec
        The dataset.
    test : Samples
        n rows of it, one or more, which all estimators locate, as they were measured.
    train : Samples
        Other rows of it, for the estimator that learns from levels at known places. If the layouts are random it does
        not exist, as the places of one network say nothing of another.
    predicted : MixturePositions
        The n posteriors that the model gives for ``test``, each in the frame of its own layout.
    max_gdop : float
        Rows with a lower GDOP have good geometry.

    Returns
    -------
    Comparison
        The errors of all estimators, and what is needed to summarise them.

    Raises
    ------
    ValueError
        If there are no test rows, the numbers of rows or of receivers do not fit each other, or ``max_gdop`` is not
        positive.
    """
    if not len(test):
        raise ValueError("test has no rows; simulate more samples")
    if len(predicted) != len(test):
        raise ValueError(f"predicted must have one row per test sample, {len(test)}, it has {len(predicted)}")
    for name, samples in (("test", test), ("train", train)):
        if samples.num_sites != spec.num_sites:
            raise ValueError(f"{name} has {samples.num_sites} receivers, the dataset has {spec.num_sites}")
    if not max_gdop > 0:
        raise ValueError(f"max_gdop must be above 0, got {max_gdop}")
    is_reference = np.zeros(len(test), bool)
    is_reference[reference_rows(test)] = True
    parts, places = [], []
    for layout, rows in spec.by_layout(test):
        known = None if spec.network is None else calibrated(layout, train)
        problem = Problem(layout, calibrated(layout, test.take(rows)), known, predicted.take(rows))
        parts.append(_compared(problem, np.flatnonzero(is_reference[rows]), max_gdop))
        places.append(rows)
    return _joined(parts, np.concatenate(places), max_gdop)


def errors_m(spec: DatasetSpec, samples: Samples, positions: Positions) -> Float:
    """Distance of each position from the true place.

    Parameters
    ----------
    spec : DatasetSpec
        The dataset.
    samples : Samples
        n rows of it.
    positions : Positions
        n positions, each in the frame of its own layout.

    Returns
    -------
    ndarray, shape (n,)
        Great-circle distance, metres; NaN for a row without a position.
    """
    error_m = np.full(len(samples), np.nan)
    for layout, rows in spec.by_layout(samples):
        some = Positions.of_points(positions.en_m[rows])
        part = samples.take(rows)
        error_m[rows] = some.error_m(layout.network.frame, part.tx_altitude_m, part.tx_lat, part.tx_lon)
    return error_m


def _compared(problem: Problem, of_reference: NDArray[np.int64], max_gdop: float) -> Comparison:
    """The comparison on the rows of one layout."""
    test, network = problem.test, problem.layout.network
    distance_m: dict[Estimator, Float | None] = dict.fromkeys(ESTIMATORS)
    for estimator in ESTIMATORS:
        if estimator.exists_in(problem):
            positions = estimator.locate(problem)
            distance_m[estimator] = positions.error_m(network.frame, test.tx_altitude_m, test.tx_lat, test.tx_lon)
    return Comparison(
        max_gdop=max_gdop,
        truth_en_m=problem.truth_en_m,
        distance_m=distance_m,
        content=problem.predicted.content_at(problem.truth_en_m),
        predicted_rms_m=problem.predicted.rms_m(),
        reference=reference(problem, of_reference),
        crlb_m=test.crlb_m.astype(np.float64),
        mixture_crlb_m=problem.mixture_crlb_m(),
        gdop=test.gdop.astype(np.float64),
        num_arrival_times=test.toa_present.sum(1),
        inside_hull=inside_hull(network.site_enu_m[:, :2], problem.truth_en_m),
    )


def _joined(parts: list[Comparison], places: NDArray[np.int64], max_gdop: float) -> Comparison:
    """The comparisons of several layouts as one, whose rows have these places. An estimator exists if it does in one of
    the layouts; in the others it locates nothing."""
    order = np.argsort(places)

    def joined(column: Callable[[Comparison], NDArray]) -> NDArray:
        return np.concatenate([column(part) for part in parts])[order]

    def errors_of(estimator: Estimator) -> Callable[[Comparison], Float]:
        def column(part: Comparison) -> Float:
            distance_m = part.distance_m[estimator]
            return np.full(len(part.gdop), np.nan) if distance_m is None else distance_m

        return column

    existing = [e for e in ESTIMATORS if any(part.distance_m[e] is not None for part in parts)]
    return Comparison(
        max_gdop=max_gdop,
        truth_en_m=joined(lambda part: part.truth_en_m),
        distance_m=dict.fromkeys(ESTIMATORS) | {e: joined(errors_of(e)) for e in existing},
        content=joined(lambda part: part.content),
        predicted_rms_m=joined(lambda part: part.predicted_rms_m),
        reference=Reference(
            distance_m=joined(lambda part: part.reference.distance_m),
            log_density=joined(lambda part: part.reference.log_density),
            content=joined(lambda part: part.reference.content),
            model_log_density=joined(lambda part: part.reference.model_log_density),
        ),
        crlb_m=joined(lambda part: part.crlb_m),
        mixture_crlb_m=joined(lambda part: part.mixture_crlb_m),
        gdop=joined(lambda part: part.gdop),
        num_arrival_times=joined(lambda part: part.num_arrival_times),
        inside_hull=joined(lambda part: part.inside_hull),
    )


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
