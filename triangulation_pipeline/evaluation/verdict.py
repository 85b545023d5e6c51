"""Whether a model is good enough to be promoted, and why."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import count

import numpy as np
from numpy.typing import NDArray

from triangulation_pipeline.evaluation.summary import CLASSICAL_NAME, MODEL_NAME, ErrorStatistics, Summary

Float = NDArray[np.float64]

# The noise of the sample: on the test split of a default dataset (6,600 rows with good geometry) the standard error of
# a p95 is about 4 %. Both models meet the same rows, so two models that are equally good differ by a part of it.
MOST_P95_OVER_PRODUCTION = 1.02
# The fraction of all possible errors that the 95 % ellipse may cover; ``coverage_limits`` judge that of a sample.
LEAST_COVERAGE_95, MOST_COVERAGE_95 = 0.93, 0.97
# 95 % of a normal distribution lie within so many standard deviations.
BAND_SIGMAS = 1.96


@dataclass(frozen=True)
class PromotionCheck:
    """The outcome of a check: whether the model passed, why, and the numbers that decided it."""

    name: str
    passed: bool
    description: str
    numbers: dict[str, float] = field(default_factory=dict)


def coverage_limits(rows: int) -> tuple[float, float] | None:
    """The least and the largest fraction of ``rows`` errors that the 95 % ellipse may cover.

    They are LEAST_COVERAGE_95 and MOST_COVERAGE_95, each widened by 1.96 binomial standard errors: of a model that is
    just good enough, 95 % of the samples lie within. None if the upper limit is 100 % or more: so few rows cannot show
    that an ellipse is too large.
    """
    low, high = (
        limit + side * BAND_SIGMAS * math.sqrt(limit * (1 - limit) / max(rows, 1))
        for limit, side in ((LEAST_COVERAGE_95, -1), (MOST_COVERAGE_95, 1))
    )
    return None if high >= 1 else (low, high)


@dataclass(frozen=True)
class CheckSpec:
    """A condition of a promotion: its name, and what it asks for."""

    name: str
    description: str


LEAST_ROWS = next(rows for rows in count() if coverage_limits(rows) is not None)
ACCURACY = CheckSpec("accuracy", "Test RMSE on good geometry is at most max_rmse_m.")
CALIBRATION = CheckSpec(
    "calibration",
    f"The 95 % ellipse covers {100 * LEAST_COVERAGE_95:.0f} to {100 * MOST_COVERAGE_95:.0f} % of the errors on good "
    f"geometry; both limits are widened by {BAND_SIGMAS:g} standard errors of the sample. Fewer than {LEAST_ROWS} rows "
    "are too few to tell, and do not pass.",
)
BETTER_THAN_CLASSICAL = CheckSpec(
    "better_than_classical", "The p95 error is below that of multi-start Huber Gauss-Newton on the same rows."
)
NOT_WORSE_THAN_PRODUCTION = CheckSpec(
    "not_worse_than_production",
    f"The p95 error is at most {100 * (MOST_P95_OVER_PRODUCTION - 1):.0f} % above that of the version in production, "
    "on the same test rows; that version is for the same network.",
)
# Those of an evaluation; a registration adds NOT_WORSE_THAN_PRODUCTION.
EVALUATION_CHECKS = (ACCURACY, CALIBRATION, BETTER_THAN_CLASSICAL)


def promotion_checks(summary: Summary, max_rmse_m: float) -> list[PromotionCheck]:
    """The outcomes of ``EVALUATION_CHECKS``, on the test rows with good geometry.

    ``accuracy``: the model locates every such row, with an RMSE of at most ``max_rmse_m``. ``calibration``: the 95 %
    ellipse covers a fraction within ``coverage_limits``. ``better_than_classical``: the 95th percentile is below that
    of multi-start Huber Gauss-Newton, on the rows that all estimators located. All fail without such rows, and
    calibration fails if there are too few to tell.
    """
    good = summary.good_geometry
    reason = ""
    if not good.rows:
        why = "" if summary.all.estimators[CLASSICAL_NAME] else " (there are no arrival times)"
        reason = f"none of the {summary.all.rows:,} test rows has GDOP < {summary.max_gdop:g}{why}"
    elif missing := good.model.rows_without_fix:
        reason = f"the model gives no position on {missing:,} rows"
    if reason:
        return [PromotionCheck(check.name, False, reason) for check in EVALUATION_CHECKS]
    return [
        _accuracy(good.model.rmse_m, max_rmse_m, good.rows),
        _calibration(good.calibration.coverage_95, good.rows),
        _better_than_classical(good.on_common_rows, good.common_rows),
    ]


def _accuracy(rmse_m: float | None, limit_m: float, rows: int) -> PromotionCheck:
    assert rmse_m is not None  # of one row or more
    accurate = rmse_m <= limit_m
    return PromotionCheck(
        ACCURACY.name,
        accurate,
        f"the RMSE of {rmse_m:,.1f} m is {'within' if accurate else 'above'} {limit_m:,.1f} m",
        {"rmse_m": rmse_m, "limit_m": limit_m, "rows": rows},
    )


def _calibration(covered: float | None, rows: int) -> PromotionCheck:
    assert covered is not None  # of one row or more
    found = f"the 95 % ellipse covers {100 * covered:.1f} %"
    numbers: dict[str, float] = {"coverage_95": covered, "rows": rows}
    limits = coverage_limits(rows)
    if limits is None:
        return PromotionCheck(
            CALIBRATION.name, False, f"{found}, of too few rows to tell whether that is right", numbers
        )
    low, high = limits
    calibrated = low <= covered <= high
    return PromotionCheck(
        CALIBRATION.name,
        calibrated,
        f"{found} ({'within' if calibrated else 'not within'} {100 * low:.1f} to {100 * high:.1f} %)",
        {**numbers, "lowest": low, "highest": high},
    )


def _better_than_classical(on_common_rows: Mapping[str, ErrorStatistics | None], rows: int) -> PromotionCheck:
    """By the statistics of both on the same rows."""
    mine_m, classical_m = (
        None if (errors := on_common_rows[name]) is None else errors.p95_m for name in (MODEL_NAME, CLASSICAL_NAME)
    )
    if not rows or mine_m is None or classical_m is None:
        return PromotionCheck(
            BETTER_THAN_CLASSICAL.name, False, "no row has a fix by Huber Gauss-Newton to compare the p95 with"
        )
    better = mine_m < classical_m
    return PromotionCheck(
        BETTER_THAN_CLASSICAL.name,
        better,
        f"the p95 of {mine_m:,.1f} m is{'' if better else ' not'} below Huber Gauss-Newton's {classical_m:,.1f} m",
        {"p95_m": mine_m, "limit_m": classical_m, "rows": rows},
    )


def not_worse_than_production(
    challenger_m: Float, champion_m: Float, good_geometry: NDArray[np.bool_], version: int
) -> PromotionCheck:
    """Whether the model that would go into production is no worse than version ``version``, which is there.

    It compares the 95th percentiles of their errors (n,) on the same rows: those with good geometry, or all rows if
    none has it, that both models located (NaN is an error without a fix). It fails if the challenger's percentile is
    above MOST_P95_OVER_PRODUCTION times the champion's, or if there is no such row.
    """
    name = NOT_WORSE_THAN_PRODUCTION.name
    rows = good_geometry if good_geometry.any() else np.ones(len(good_geometry), bool)
    rows = rows & np.isfinite(challenger_m) & np.isfinite(champion_m)
    if not rows.any():
        reason = f"there is no test row that both it and version {version} in production locate"
        return PromotionCheck(name, False, reason)
    numbers: dict[str, float] = {"champion_version": version, "compared_rows": int(rows.sum())}
    for who, distance_m in (("challenger", challenger_m), ("champion", champion_m)):
        p50_m, p95_m = np.percentile(distance_m[rows], (50, 95))
        numbers |= {f"{who}_p50_m": float(p50_m), f"{who}_p95_m": float(p95_m)}
    mine_m, theirs_m = numbers["challenger_p95_m"], numbers["champion_p95_m"]
    passed = mine_m <= MOST_P95_OVER_PRODUCTION * theirs_m
    return PromotionCheck(
        name,
        passed,
        f"the p95 of {mine_m:,.1f} m is {'at most' if passed else 'above'} {MOST_P95_OVER_PRODUCTION:g} times the "
        f"{theirs_m:,.1f} m of version {version} in production",
        numbers,
    )


def promotion_verdict(summary: Summary, checks: list[PromotionCheck]) -> tuple[bool, str]:
    """Whether the model is promoted, and the reason: the checks that failed, else those that passed, in one sentence,
    and the distance to the exact posterior in another."""
    failed = list(dict.fromkeys(check.description for check in checks if not check.passed))
    reasons = failed or [check.description for check in checks]
    joined = ", ".join(reasons[:-1]) + " and " + reasons[-1] if len(reasons) > 1 else reasons[0]
    rows = summary.good_geometry.rows
    where = f" on {rows:,} test rows with GDOP < {summary.max_gdop:g}" if rows else ""
    return not failed, f"{'Not promoted' if failed else 'Promoted'}:{where} {joined}.{_distance_to_the_limit(summary)}"


def _distance_to_the_limit(summary: Summary) -> str:
    """How far the model is from the exact posterior, on rows with good geometry or else on all, as a sentence after
    another; empty if that is not known."""
    part = summary.good_geometry if summary.good_geometry.rows else summary.all
    found = part.exact_posterior
    if found is None or found.rmse_excess is None or found.nats_below is None:
        return ""
    above, below = ("above" if found.rmse_excess >= 0 else "below", "below" if found.nats_below >= 0 else "above")
    return (
        f" On {'' if found.rows == part.rows else f'{found.rows:,} of '}these rows its RMSE is "
        f"{abs(100 * found.rmse_excess):,.1f} % {above} that of the exact posterior, the limit, and its log density "
        f"{abs(found.nats_below):.2f} nats {below}."
    )
