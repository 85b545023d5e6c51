"""Whether a model is good enough to be promoted, and why."""

import math
from dataclasses import dataclass, field

import numpy as np

from triangulation_pipeline.evaluation.comparison import Estimator, Float, Subset, Summary

# The noise of the sample: on the test split of a default dataset (6,600 rows with good geometry) a p95 has a standard
# error of about 4 %. Both models meet the same rows, which leaves a part of it between two that are equally good.
MOST_P95_OVER_PRODUCTION = 1.02
NOT_WORSE = "not_worse_than_production"
# What the 95 % ellipse may cover of all errors there could be; a sample's share is judged by `coverage_limits`.
LEAST_COVERAGE_95, MOST_COVERAGE_95 = 0.93, 0.97
# Of a normal distribution 95 % lie within so many standard deviations.
BAND_SIGMAS = 1.96


@dataclass(frozen=True)
class PromotionCheck:
    """One thing a model must be, and what was found, with the numbers it was decided by."""

    name: str
    passed: bool
    description: str
    numbers: dict[str, float] = field(default_factory=dict)


def coverage_limits(rows: int) -> tuple[float, float] | None:
    """Between which shares of ``rows`` errors the 95 % ellipse may cover: LEAST_COVERAGE_95 to MOST_COVERAGE_95, each
    widened by 1.96 binomial standard errors, within which 95 % of the samples of a model that is just good enough lie.

    None where the upper one is 100 % or more (fewer than 125 rows): so few cannot show that an ellipse is too large.
    """
    low, high = (
        limit + side * BAND_SIGMAS * math.sqrt(limit * (1 - limit) / max(rows, 1))
        for limit, side in ((LEAST_COVERAGE_95, -1), (MOST_COVERAGE_95, 1))
    )
    return None if high >= 1 else (low, high)


def promotion_checks(summary: Summary, max_rmse_m: float) -> list[PromotionCheck]:
    """What ``Comparison.summary()`` says of a model on the test rows with good geometry.

    ``accuracy``: every such row is located, with an RMSE of at most ``max_rmse_m``; ``calibration``: the 95 % ellipse
    covers a share within ``coverage_limits``; ``better_than_classical``: the 95th percentile lies below
    multi-start Huber Gauss-Newton's, on the rows on which all estimators have a fix. All fail without such rows, and
    calibration where they are too few to tell.
    """
    good = summary[Subset.good_geometry]
    model, rival = Estimator.model, Estimator.huber_gauss_newton
    reason = ""
    if not good["rows"]:
        everything = summary[Subset.all]
        why = "" if everything["estimators"][rival] else " (there are no arrival times)"
        reason = f"none of the {everything['rows']:,} test rows has GDOP < {summary['max_gdop']:g}{why}"
    elif missing := good["estimators"][model]["rows_without_fix"]:
        reason = f"the model gives no position on {missing:,} rows"
    if reason:
        return [PromotionCheck(name, False, reason) for name in ("accuracy", "calibration", "better_than_classical")]

    rmse_m = good["estimators"][model]["rmse_m"]
    accurate = rmse_m <= max_rmse_m
    return [
        PromotionCheck(
            "accuracy",
            accurate,
            f"the RMSE of {rmse_m:,.1f} m is {'within' if accurate else 'above'} {max_rmse_m:,.1f} m",
            {"rmse_m": rmse_m, "limit_m": max_rmse_m, "rows": good["rows"]},
        ),
        _calibration(good["calibration"]["coverage_95"], good["rows"]),
        _better_than_classical(good["on_common_rows"][model], good["on_common_rows"][rival], good["common_rows"]),
    ]


def _calibration(covered: float, rows: int) -> PromotionCheck:
    told = f"the 95 % ellipse covers {100 * covered:.1f} %"
    numbers: dict[str, float] = {"coverage_95": covered, "rows": rows}
    limits = coverage_limits(rows)
    if limits is None:
        return PromotionCheck("calibration", False, f"{told}, of too few rows to tell whether that is right", numbers)
    low, high = limits
    calibrated = low <= covered <= high
    return PromotionCheck(
        "calibration",
        calibrated,
        f"{told} ({'within' if calibrated else 'not within'} {100 * low:.1f} to {100 * high:.1f} %)",
        {**numbers, "lowest": low, "highest": high},
    )


def _better_than_classical(model: Summary, rival: Summary | None, rows: int) -> PromotionCheck:
    """By ``distance_statistics`` of both on the same rows."""
    name = "better_than_classical"
    if not rows or rival is None:
        return PromotionCheck(name, False, "no row has a fix by Huber Gauss-Newton to compare the p95 with")
    mine_m, rival_m = model["p95_m"], rival["p95_m"]
    better = mine_m < rival_m
    return PromotionCheck(
        name,
        better,
        f"the p95 of {mine_m:,.1f} m is{'' if better else ' not'} below Huber Gauss-Newton's {rival_m:,.1f} m",
        {"p95_m": mine_m, "limit_m": rival_m, "rows": rows},
    )


def not_worse_than_production(
    challenger_m: Float, champion_m: Float, good_geometry: np.ndarray, version: int
) -> PromotionCheck:
    """Whether the model that would go into production is no worse than version ``version``, which is there.

    By the 95th percentile of their errors (n,) on the same rows: those with good geometry, or all where none has, on
    which both have a fix (NaN is none). Fails where the challenger's is above MOST_P95_OVER_PRODUCTION times the
    champion's, or no such row exists.
    """
    rows = good_geometry if good_geometry.any() else np.ones(len(good_geometry), bool)
    rows = rows & np.isfinite(challenger_m) & np.isfinite(champion_m)
    if not rows.any():
        reason = f"there is no test row that both it and version {version} in production locate"
        return PromotionCheck(NOT_WORSE, False, reason)
    numbers: dict[str, float] = {"champion_version": version, "compared_rows": int(rows.sum())}
    for who, distance_m in (("challenger", challenger_m), ("champion", champion_m)):
        p50_m, p95_m = np.percentile(distance_m[rows], (50, 95))
        numbers |= {f"{who}_p50_m": float(p50_m), f"{who}_p95_m": float(p95_m)}
    mine_m, theirs_m = numbers["challenger_p95_m"], numbers["champion_p95_m"]
    passed = mine_m <= MOST_P95_OVER_PRODUCTION * theirs_m
    return PromotionCheck(
        NOT_WORSE,
        passed,
        f"the p95 of {mine_m:,.1f} m is {'at most' if passed else 'above'} {MOST_P95_OVER_PRODUCTION:g} times the "
        f"{theirs_m:,.1f} m of version {version} in production",
        numbers,
    )


def promotion_verdict(summary: Summary, checks: list[PromotionCheck]) -> tuple[bool, str]:
    """Promoted or not, and the reason in one sentence: what failed, or else what passed."""
    failed = list(dict.fromkeys(check.description for check in checks if not check.passed))
    told = failed or [check.description for check in checks]
    joined = ", ".join(told[:-1]) + " and " + told[-1] if len(told) > 1 else told[0]
    rows = summary[Subset.good_geometry]["rows"]
    where = f" on {rows:,} test rows with GDOP < {summary['max_gdop']:g}" if rows else ""
    return not failed, f"{'Not promoted' if failed else 'Promoted'}:{where} {joined}."
