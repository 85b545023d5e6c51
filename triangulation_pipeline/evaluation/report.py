"""The numbers of an evaluation that people read first."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from triangulation_pipeline.evaluation.estimators import ESTIMATORS, MODEL, Estimator
from triangulation_pipeline.evaluation.summary import (
    COVERAGE_LEVELS,
    Group,
    PosteriorSummary,
    Subset,
    SubsetSummary,
    Summary,
)

Value = float | int | None


@dataclass(frozen=True)
class HeadlineNumber:
    """A number under the names that it has in the headline: on all test rows, and on those with good geometry."""

    name: str
    good_geometry_name: str
    unit: str  # m, rows, or 1 for a number without a unit
    description: str
    value: Callable[[SubsetSummary], Value]


def _errors_of(estimator: Estimator) -> tuple[HeadlineNumber, ...]:
    """The numbers of a baseline."""

    def field(name: str) -> Callable[[SubsetSummary], Value]:
        return lambda part: getattr(part.estimators[estimator.name], name, None)

    name, who = estimator.prefix, f'"{estimator.label}"'
    return (
        HeadlineNumber(
            f"{name}_rmse_m",
            f"{name}_rmse_good_geom_m",
            "m",
            f"RMSE of {who}, on rows that it located.",
            field("rmse_m"),
        ),
        HeadlineNumber(
            f"{name}_p50_m",
            f"{name}_p50_good_geom_m",
            "m",
            f"Median error of {who}, on rows that it located.",
            field("p50_m"),
        ),
        HeadlineNumber(
            f"{name}_p95_m",
            f"{name}_p95_good_geom_m",
            "m",
            f"95th percentile of the error of {who}, on rows that it located.",
            field("p95_m"),
        ),
        HeadlineNumber(
            f"{name}_rows_without_fix",
            f"{name}_rows_without_fix_good_geom",
            "rows",
            f"Number of rows that {who} did not locate.",
            field("rows_without_fix"),
        ),
    )


def _posterior(part: SubsetSummary, value: Callable[[PosteriorSummary], Value]) -> Value:
    """A number of the comparison with the exact posterior; None in an evaluation of an older version."""
    return None if part.exact_posterior is None else value(part.exact_posterior)


def _coverage_of(name: str, level: float) -> HeadlineNumber:
    return HeadlineNumber(
        f"test_{name}",
        f"test_{name}_good_geom",
        "1",
        f"Fraction of the true places within the model's regions of {100 * level:g} %.",
        lambda part: getattr(part.calibration, name),
    )


HEADLINE = (
    HeadlineNumber(
        "test_rmse_m",
        "test_rmse_good_geom_m",
        "m",
        "RMSE of the model, on rows that it located.",
        lambda part: part.model.rmse_m,
    ),
    HeadlineNumber(
        "test_p50_m",
        "test_p50_good_geom_m",
        "m",
        "Median error of the model, on rows that it located.",
        lambda part: part.model.p50_m,
    ),
    HeadlineNumber(
        "test_p95_m",
        "test_p95_good_geom_m",
        "m",
        "95th percentile of the error of the model, on rows that it located.",
        lambda part: part.model.p95_m,
    ),
    HeadlineNumber(
        "test_rows_without_fix",
        "test_rows_without_fix_good_geom",
        "rows",
        "Number of rows that the model did not locate.",
        lambda part: part.model.rows_without_fix,
    ),
    *(number for estimator in ESTIMATORS if estimator is not MODEL for number in _errors_of(estimator)),
    HeadlineNumber(
        "exact_posterior_rows",
        "exact_posterior_rows_good_geom",
        "rows",
        "Number of rows on which the exact posterior was computed and compared with the model.",
        lambda part: _posterior(part, lambda found: found.rows),
    ),
    HeadlineNumber(
        "exact_posterior_rmse_m",
        "exact_posterior_rmse_good_geom_m",
        "m",
        "RMSE of the exact posterior's mean, on its rows: the least RMSE of any estimator.",
        lambda part: _posterior(part, lambda found: found.posterior.rmse_m),
    ),
    HeadlineNumber(
        "exact_posterior_p50_m",
        "exact_posterior_p50_good_geom_m",
        "m",
        "Median error of the exact posterior's mean, on its rows.",
        lambda part: _posterior(part, lambda found: found.posterior.p50_m),
    ),
    HeadlineNumber(
        "exact_posterior_p95_m",
        "exact_posterior_p95_good_geom_m",
        "m",
        "95th percentile of the error of the exact posterior's mean, on its rows.",
        lambda part: _posterior(part, lambda found: found.posterior.p95_m),
    ),
    HeadlineNumber(
        "test_rmse_above_posterior",
        "test_rmse_above_posterior_good_geom",
        "1",
        "Fraction by which the RMSE of the model is above that of the exact posterior's mean, on the same rows; 0.01 "
        "is 1 %.",
        lambda part: _posterior(part, lambda found: found.rmse_excess),
    ),
    HeadlineNumber(
        "test_nats_below_posterior",
        "test_nats_below_posterior_good_geom",
        "1",
        "Nats by which the log density of the model at the truth is below that of the exact posterior, on average over "
        "the same rows.",
        lambda part: _posterior(part, lambda found: found.nats_below),
    ),
    HeadlineNumber(
        "crlb_rms_m",
        "crlb_rms_good_geom_m",
        "m",
        "Root mean square of the Cramér-Rao bound, for Gaussian errors.",
        lambda part: part.crlb_rms_m,
    ),
    HeadlineNumber(
        "crlb_p50_m",
        "crlb_p50_good_geom_m",
        "m",
        "Median of the Cramér-Rao bound, for Gaussian errors.",
        lambda part: part.crlb_p50_m,
    ),
    HeadlineNumber(
        "mixture_crlb_rms_m",
        "mixture_crlb_rms_good_geom_m",
        "m",
        "Root mean square of the Cramér-Rao bound with delayed paths, by arrival times alone.",
        lambda part: part.mixture_crlb_rms_m,
    ),
    *(_coverage_of(name, level) for name, level in COVERAGE_LEVELS.items()),
)
HEADLINE_NAMES = (*(number.name for number in HEADLINE), *(number.good_geometry_name for number in HEADLINE))


def headline(summary: Summary) -> dict[str, Value]:
    """The numbers of ``HEADLINE`` by name, on all rows and on those with good geometry; None for a number without
    data."""
    everywhere = {number.name: number.value(summary.all) for number in HEADLINE}
    return everywhere | {number.good_geometry_name: number.value(summary.good_geometry) for number in HEADLINE}


def estimator_table(summary: Summary, subset: Subset) -> list[dict[str, Any]]:
    """One row per estimator available in this scenario: its errors on the samples it could locate."""
    estimators = summary.subset(subset).estimators
    return [{"estimator": name, **dict(errors)} for name, errors in estimators.items() if errors is not None]


def group_table(groups: Iterable[Group]) -> list[dict[str, Any]]:
    """One row per group of test rows: the model, the best baseline, the distance to the exact posterior, coverage."""
    return [dict(group) for group in groups]


def posterior_table(summary: Summary) -> list[dict[str, Any]]:
    """The exact posterior and the model on the same rows, of all and of those with good geometry: one row each."""
    return [
        {"test rows": subset.value.replace("_", " "), "density": name, **dict(errors)}
        for subset in Subset
        if (found := summary.subset(subset).exact_posterior) is not None
        for name, errors in (("exact posterior", found.posterior), ("model", found.model))
    ]
