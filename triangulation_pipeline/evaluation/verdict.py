"""Whether a model is good enough to be promoted, and why."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from triangulation_pipeline.evaluation.summary import (
    CLASSICAL_NAME,
    COVERAGE_LEVELS,
    MODEL_NAME,
    Coverage,
    ErrorStatistics,
    PosteriorSummary,
    Summary,
)
from triangulation_pipeline.model.names import ModelName

Float = NDArray[np.float64]

# The noise of the sample: on the test split of a default dataset (6,600 rows with good geometry) the standard error of
# a p95 is about 4 %. Both models meet the same rows, so two models that are equally good differ by a part of it.
MOST_P95_OVER_PRODUCTION = 1.02
# Regions of probability p may cover p within this tolerance, of all possible rows; of a sample so many binomial
# standard errors more.
COVERAGE_TOLERANCE, BAND_SIGMAS = 0.01, 3.0
LEAST_ROWS = 100
# A trained model is about 0.05 nats below the exact posterior, and 1 to 3 % above it in RMSE. On the 900 rows of a
# default evaluation the standard errors are about 0.01 nats and 2 %.
MOST_NATS_BELOW, MOST_RMSE_EXCESS = 0.15, 0.05
LEAST_POSTERIOR_ROWS = 200


@dataclass(frozen=True)
class PromotionCheck:
    """The outcome of a check: whether the model passed, why, and the numbers that decided it."""

    name: str
    passed: bool
    description: str
    numbers: dict[str, float] = field(default_factory=dict)


def coverage_limits(level: float, rows: int) -> tuple[float, float]:
    """The least and the largest fraction of ``rows`` truths that regions of probability ``level`` may cover: within
    0.01 of it, and three binomial standard errors of the sample more."""
    band = COVERAGE_TOLERANCE + BAND_SIGMAS * math.sqrt(level * (1 - level) / rows)
    return max(level - band, 0.0), min(level + band, 1.0)


@dataclass(frozen=True)
class CheckSpec:
    """A condition of a promotion: its name, and what it asks for."""

    name: str
    description: str


_LEVELS = "/".join(f"{100 * level:g}" for level in COVERAGE_LEVELS.values())
ACCURACY = CheckSpec("accuracy", "Test RMSE on good geometry is at most max_rmse_m.")
CALIBRATION = CheckSpec(
    "calibration",
    f"On good geometry, the regions of {_LEVELS} % hold that share of the true places, within "
    f"{100 * COVERAGE_TOLERANCE:g} percentage point plus {BAND_SIGMAS:g} standard errors of the sample. Fewer than "
    f"{LEAST_ROWS} rows are too few to tell, and do not pass.",
)
CALIBRATION_BY_ARRIVAL_TIMES = CheckSpec(
    "calibration_by_arrival_times",
    "On all test rows, the same holds for each number of arrival times (fewer than 3, 3, 4, 5, 6, 7 and more) that "
    f"{LEAST_ROWS} rows or more have.",
)
NEAR_EXACT_POSTERIOR = CheckSpec(
    "near_exact_posterior",
    f"On good geometry, the log density at the true places is at most {MOST_NATS_BELOW:g} nats below that of the exact "
    f"posterior, and the RMSE at most {100 * MOST_RMSE_EXCESS:g} % above, by no more than {BAND_SIGMAS:g} standard "
    f"errors of the sample. Fewer than {LEAST_POSTERIOR_ROWS} rows with an exact posterior are too few to tell, and "
    "pass.",
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
EVALUATION_CHECKS = (
    ACCURACY,
    CALIBRATION,
    CALIBRATION_BY_ARRIVAL_TIMES,
    NEAR_EXACT_POSTERIOR,
    BETTER_THAN_CLASSICAL,
)


def promotion_checks(summary: Summary, max_rmse_m: float) -> list[PromotionCheck]:
    """The outcomes of ``EVALUATION_CHECKS``, whose descriptions say what they ask for.

    All but ``calibration_by_arrival_times`` are on the test rows with good geometry. All fail without such rows, or if
    the model gives no position on one of them.
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
        _calibration(good.calibration, good.rows),
        _calibration_by_arrival_times(summary),
        _near_exact_posterior(good.exact_posterior),
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


def _levels(covered: Coverage) -> dict[str, tuple[float, float]]:
    """The level and the coverage of each region that is known, by name."""
    found = {name: (level, getattr(covered, name)) for name, level in COVERAGE_LEVELS.items()}
    return {name: (level, share) for name, (level, share) in found.items() if share is not None}


def _miscovered(covered: Coverage, rows: int) -> str | None:
    """Which regions hold too many or too few of the true places of ``rows`` rows; None if all are within limits."""
    limits = {level: (share, *coverage_limits(level, rows)) for level, share in _levels(covered).values()}
    wrong = {level: found for level, found in limits.items() if not found[1] <= found[0] <= found[2]}
    allowed = ", ".join(f"{100 * low:.1f} to {100 * high:.1f}" for _, low, high in wrong.values())
    return f"{_told({level: found[0] for level, found in wrong.items()})} (not within {allowed} %)" if wrong else None


def _told(shares: Mapping[float, float]) -> str:
    """What regions hold, by level, in words."""
    levels = "/".join(f"{100 * level:g}" for level in shares)
    return f"the {levels} % regions hold {'/'.join(f'{100 * share:.1f}' for share in shares.values())} % of the places"


def _calibration(covered: Coverage, rows: int) -> PromotionCheck:
    levels = _levels(covered)
    found = _told(dict(levels.values()))
    numbers: dict[str, float] = {name: share for name, (_, share) in levels.items()} | {"rows": rows}
    if rows < LEAST_ROWS:
        return PromotionCheck(
            CALIBRATION.name, False, f"{found}, which are too few rows to tell whether that is right", numbers
        )
    wrong = _miscovered(covered, rows)
    return PromotionCheck(CALIBRATION.name, wrong is None, wrong or found, numbers)


def _calibration_by_arrival_times(summary: Summary) -> PromotionCheck:
    groups = [group for group in summary.all.by_arrival_times if group.count >= LEAST_ROWS]
    wrong = [
        f"on all {group.count:,} test rows with {group.name} arrival times {clause}"
        for group in groups
        if (clause := _miscovered(group, group.count))
    ]
    numbers = {
        f"{name}_of_{group.name.replace(' ', '_')}": share
        for group in groups
        for name, (_, share) in _levels(group).items()
    }
    told = f"so they do on all test rows for each number of arrival times ({len(groups)} groups)"
    return PromotionCheck(CALIBRATION_BY_ARRIVAL_TIMES.name, not wrong, ", ".join(wrong) or told, numbers)


def _near_exact_posterior(found: PosteriorSummary | None) -> PromotionCheck:
    name = NEAR_EXACT_POSTERIOR.name
    if found is None or found.rmse_excess is None or found.nats_below is None:
        return PromotionCheck(name, True, "there is no exact posterior to compare it with")
    excess_error, nats_error = found.rmse_excess_error or 0.0, found.nats_below_error or 0.0
    numbers = {
        "rmse_excess": found.rmse_excess,
        "rmse_excess_error": excess_error,
        "nats_below": found.nats_below,
        "nats_below_error": nats_error,
        "rows": found.rows,
    }
    above, below = ("above" if found.rmse_excess >= 0 else "below", "below" if found.nats_below >= 0 else "above")
    told = (
        f"on {found.rows:,} of these rows the RMSE is {100 * abs(found.rmse_excess):,.1f} ± {100 * excess_error:,.1f} "
        f"% {above} that of the exact posterior, the limit, and the log density {abs(found.nats_below):.2f} ± "
        f"{nats_error:.2f} nats {below}"
    )
    if found.rows < LEAST_POSTERIOR_ROWS:
        return PromotionCheck(name, True, f"{told} (too few rows to judge by)", numbers)
    is_near = (
        found.nats_below <= MOST_NATS_BELOW + BAND_SIGMAS * nats_error
        and found.rmse_excess <= MOST_RMSE_EXCESS + BAND_SIGMAS * excess_error
    )
    limits = (
        f"{100 * MOST_RMSE_EXCESS:g} % and {MOST_NATS_BELOW:g} nats are allowed, and {BAND_SIGMAS:g} standard errors"
    )
    return PromotionCheck(name, is_near, told if is_near else f"{told} ({limits})", numbers)


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
    challenger_m: Float, champion_m: Float, good_geometry: NDArray[np.bool_], model_name: str, version: int
) -> PromotionCheck:
    """Whether the model that would go into production is no worse than ``version`` of it, which is there.

    It compares the 95th percentiles of their errors (n,) on the same rows: those with good geometry, or all rows if
    none has it, that both models located (NaN is an error without a fix). It fails if the challenger's percentile is
    above MOST_P95_OVER_PRODUCTION times the champion's, or if there is no such row.
    """
    name, champion = NOT_WORSE_THAN_PRODUCTION.name, ModelName(model_name, version)
    rows = good_geometry if good_geometry.any() else np.ones(len(good_geometry), bool)
    rows = rows & np.isfinite(challenger_m) & np.isfinite(champion_m)
    if not rows.any():
        reason = f"there is no test row that both it and {champion} in production locate"
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
        f"{theirs_m:,.1f} m of {champion} in production",
        numbers,
    )


def promotion_verdict(summary: Summary, checks: list[PromotionCheck]) -> tuple[bool, str]:
    """Whether the model is promoted, and the reason in one sentence: the checks that failed, else those that passed."""
    failed = list(dict.fromkeys(check.description for check in checks if not check.passed))
    reasons = failed or [check.description for check in checks]
    joined = ", ".join(reasons[:-1]) + " and " + reasons[-1] if len(reasons) > 1 else reasons[0]
    rows = summary.good_geometry.rows
    where = f" on {rows:,} test rows with GDOP < {summary.max_gdop:g}" if rows else ""
    return not failed, f"{'Not promoted' if failed else 'Promoted'}:{where} {joined}."
