"""What an evaluation found, in numbers: the form in which it is stored as JSON, shown and judged.

None stands for a number without data, such as the error of an estimator that located no sample.
"""

from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict

# Names of the two estimators that a verdict is about; ``estimators.ESTIMATORS`` has them all.
MODEL_NAME = "model"
CLASSICAL_NAME = "huber_gauss_newton"
# Probabilities of the regions whose coverage is stored, by the name of its field.
COVERAGE_LEVELS = {
    "coverage_50": 0.5,
    "coverage_68": 0.683,
    "coverage_90": 0.9,
    "coverage_95": 0.95,
    "coverage_99": 0.99,
}


class Subset(StrEnum):
    """Which test rows: all, or those with a GDOP below the limit."""

    all = "all"
    good_geometry = "good_geometry"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class ErrorStatistics(_Part):
    """Statistics of position errors, metres, over ``count`` rows."""

    count: int
    rmse_m: float | None
    mean_m: float | None
    p50_m: float | None
    p68_m: float | None
    p95_m: float | None
    p99_m: float | None
    max_m: float | None


class EstimatorErrors(ErrorStatistics):
    """The errors of one estimator on the rows that it located, and how many rows it did not locate."""

    rows_without_fix: int


class Bounds(_Part):
    """Cramér-Rao bounds of the position error over some rows, metres: root mean square and median."""

    crlb_rms_m: float | None
    crlb_p50_m: float | None
    mixture_crlb_rms_m: float | None
    mixture_crlb_p50_m: float | None


class Ratios(_Part):
    """Errors of the model over bounds, and over those of Huber Gauss-Newton, on the same rows."""

    p50_over_crlb_p50: float | None
    rmse_over_crlb_rms: float | None
    p50_over_mixture_crlb_p50: float | None
    rmse_over_mixture_crlb_rms: float | None
    p50_over_huber: float | None
    p95_over_huber: float | None
    rmse_over_huber: float | None


class Coverage(_Part):
    """Fractions of the truths that lie within the regions of these probabilities, which are those of highest density.

    In an evaluation that an older version stored they are the model's error ellipses, without those of 99 %.
    """

    coverage_50: float | None
    coverage_68: float | None
    coverage_90: float | None
    coverage_95: float | None
    coverage_99: float | None = None


class ScoredErrors(ErrorStatistics, Coverage):
    """Errors of positions, the mean of the logarithm of the predicted density at the truth, nats per m^2, and the
    fractions of the truths within the predicted regions."""

    log_density: float | None


class PosteriorSummary(_Part):
    """The exact posterior and the model on the same rows, a part of the subset.

    ``rmse_excess`` is the fraction by which the model's RMSE is above the posterior mean's, ``nats_below`` the mean
    difference of the log densities. The least that an estimator can have of either, over all possible rows, is 0; the
    standard errors of this sample stand beside them (None in an evaluation that an older version stored).
    """

    rows: int
    posterior: ScoredErrors
    model: ScoredErrors
    rmse_excess: float | None
    nats_below: float | None
    rmse_excess_error: float | None = None
    nats_below_error: float | None = None


class PredictedRmsBin(_Part):
    """The model on the rows whose predicted rms error is ``low_m`` to ``high_m``."""

    low_m: float
    high_m: float
    count: int
    predicted_rms_m: float | None
    rmse_m: float | None
    p50_m: float | None
    coverage_95: float | None


class Group(Coverage):
    """The model on a group of rows, beside the best baseline and the exact posterior there.

    The best baseline is the one with the least median, in which a row without a fix counts as infinitely wrong; its
    RMSE is over the rows that it located. ``posterior_rows`` are the rows of the group on which the exact posterior was
    computed; ``rmse_excess`` and ``nats_below`` are over those, as in ``PosteriorSummary``.
    """

    name: str
    count: int
    p50_m: float | None
    rmse_m: float | None
    best_baseline: str | None
    best_baseline_p50_m: float | None
    best_baseline_rmse_m: float | None
    posterior_rows: int
    rmse_excess: float | None
    nats_below: float | None


class RetainedRisk(_Part):
    """RMSE of the model on the fraction ``retained`` of the rows that have the least predicted error."""

    retained: float
    count: int
    rmse_m: float | None


class SubsetSummary(_Part):
    """What was found on one subset of the test rows.

    ``estimators`` holds each estimator's errors on the rows that it located, ``on_common_rows`` its errors on the rows
    that all estimators located; both hold None for an estimator that does not exist in the scenario. ``ratios`` is over
    those common rows, all else over all rows of the subset. An evaluation that an older version stored has no groups,
    and perhaps no ``exact_posterior``.
    """

    rows: int
    estimators: dict[str, EstimatorErrors | None]
    common_rows: int
    on_common_rows: dict[str, ErrorStatistics | None]
    crlb_rms_m: float | None
    crlb_p50_m: float | None
    mixture_crlb_rms_m: float | None
    mixture_crlb_p50_m: float | None
    ratios: Ratios
    exact_posterior: PosteriorSummary | None = None
    calibration: Coverage
    by_arrival_times: list[Group] = []
    by_gdop: list[Group] = []
    by_hull: list[Group] = []
    by_predicted_rms: list[PredictedRmsBin]
    selective_risk: list[RetainedRisk]

    @property
    def model(self) -> EstimatorErrors:
        """The errors of the model."""
        errors = self.estimators[MODEL_NAME]
        assert errors is not None
        return errors


class Summary(_Part):
    """All numbers of an evaluation."""

    max_gdop: float
    all: SubsetSummary
    good_geometry: SubsetSummary

    def subset(self, subset: Subset) -> SubsetSummary:
        """The part on these rows."""
        return self.all if subset is Subset.all else self.good_geometry

    def document(self) -> dict[str, Any]:
        """The numbers as JSON knows them, which ``Summary.model_validate`` reads back."""
        return self.model_dump(mode="json")


class Evaluation(Summary):
    """What is stored of an evaluation: its numbers, those of the headline by name, and the verdict."""

    headline: dict[str, float | int | None]
    max_rmse_m: float
    promoted: bool
    promotion_reason: str
