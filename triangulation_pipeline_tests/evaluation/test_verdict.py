import copy
import json
import math
from typing import Any

import numpy as np
import pytest

from triangulation_pipeline.evaluation.comparison import Comparison
from triangulation_pipeline.evaluation.summary import COVERAGE_LEVELS, Summary
from triangulation_pipeline.evaluation.verdict import (
    CALIBRATION,
    EVALUATION_CHECKS,
    NEAR_EXACT_POSTERIOR,
    NOT_WORSE_THAN_PRODUCTION,
    PromotionCheck,
    coverage_limits,
    not_worse_than_production,
    promotion_checks,
    promotion_verdict,
)
from triangulation_pipeline_tests.evaluation.conftest import some_comparison

Document = dict[str, Any]
COVERED = {50: 0.503, 68: 0.675, 90: 0.897, 95: 0.9391, 99: 0.992}
TOLD = "the 50/68.3/90/95/99 % regions hold 50.3/67.5/89.7/93.9/99.2 % of the places"


def checks(document: Document, max_rmse_m: float) -> list[PromotionCheck]:
    return promotion_checks(Summary.model_validate(document), max_rmse_m)


def verdict(document: Document, max_rmse_m: float) -> tuple[bool, str]:
    return promotion_verdict(Summary.model_validate(document), checks(document, max_rmse_m))


def calibration(summary: Document, covered: float, rows: int, level: str = "coverage_95") -> PromotionCheck:
    """With one level as given, and the others right."""
    good = summary["good_geometry"] | {"rows": rows, "calibration": COVERAGE_LEVELS | {level: covered}}
    (found,) = (c for c in checks(summary | {"good_geometry": good}, 100.0) if c.name == "calibration")
    return found


@pytest.fixture
def summary() -> Document:
    """As it is stored; what a verdict looks at is such that all checks pass."""
    document = some_comparison().summary().document() | {"max_gdop": 5.0}
    document["all"] |= {"rows": 1500}
    good = document["good_geometry"]
    good |= {"rows": 1200, "common_rows": 1190}
    good["estimators"]["model"] |= {"rmse_m": 68.04, "rows_without_fix": 0}
    good["on_common_rows"]["model"] |= {"p95_m": 111.9}
    good["on_common_rows"]["huber_gauss_newton"] |= {"p95_m": 162.1}
    good["calibration"] |= {f"coverage_{name}": share for name, share in COVERED.items()}
    document["all"]["by_arrival_times"] = [
        document["all"]["by_arrival_times"][0] | COVERAGE_LEVELS | {"name": name, "count": count}
        for name, count in (("3", 99), ("4", 100), ("7 and more", 1301))
    ]
    good["exact_posterior"] |= {
        "rows": 880,
        "rmse_excess": 0.0312,
        "rmse_excess_error": 0.02,
        "nats_below": 0.154,
        "nats_below_error": 0.03,
    }
    return document


def test_promoted(summary: Document) -> None:
    assert verdict(summary, 100.0) == (
        True,
        f"Promoted: on 1,200 test rows with GDOP < 5 the RMSE of 68.0 m is within 100.0 m, {TOLD}, so they do on all "
        "test rows for each number of arrival times (2 groups), on 880 of these rows the RMSE is 3.1 ± 2.0 % above "
        "that of the exact posterior, the limit, and the log density 0.15 ± 0.03 nats below and the p95 of 111.9 m is "
        "below Huber Gauss-Newton's 162.1 m.",
    )


def test_limits_are_inclusive(summary: Document) -> None:
    assert verdict(summary, 68.04)[0]
    assert not verdict(summary, 68.03)[0]


@pytest.mark.parametrize(
    ("covered", "rows", "passed"),
    [
        # The same shares, of ever more rows.
        (0.974, 422, True),
        (0.974, 1_000, True),
        (0.974, 6_600, False),
        (0.962, 6_600, True),
        (0.962, 100_000, True),
        (0.963, 100_000, False),
        (0.909, 422, True),
        (0.908, 422, False),
        (0.938, 6_600, True),
        (0.93, 6_600, False),
    ],
)
def test_the_limits_of_calibration_leave_room_for_chance(
    summary: Document, covered: float, rows: int, passed: bool
) -> None:
    assert calibration(summary, covered, rows).passed == passed


@pytest.mark.parametrize("rows", [100, 1200, 100_000])
@pytest.mark.parametrize("name", list(COVERAGE_LEVELS))
def test_the_limits_of_each_level_are_inclusive(summary: Document, rows: int, name: str) -> None:
    """A percentage point and three standard errors of the share, within 0 and 1."""
    level = COVERAGE_LEVELS[name]
    band = 0.01 + 3 * math.sqrt(level * (1 - level) / rows)
    limits = coverage_limits(level, rows)
    assert limits == pytest.approx((max(level - band, 0), min(level + band, 1)), rel=1e-12)
    for covered, outwards in zip(limits, (0.0, 2.0), strict=True):
        assert calibration(summary, covered, rows, name).passed
        assert not calibration(summary, math.nextafter(covered, outwards), rows, name).passed


def test_a_calibrated_model_passes_on_nearly_all_samples_and_another_does_not(summary: Document) -> None:
    rng = np.random.default_rng(0)
    contents = rng.random((1000, 900))

    def share_passed(contents: np.ndarray) -> float:
        return float(np.mean([passes(row) for row in contents]))

    def passes(content: np.ndarray) -> bool:
        covered = {name: float(np.mean(content <= level)) for name, level in COVERAGE_LEVELS.items()}
        good = summary["good_geometry"] | {"rows": len(content), "calibration": covered}
        return checks(summary | {"good_geometry": good}, 100.0)[1].passed

    assert share_passed(contents) > 0.995
    # Regions that are a tenth too wide, or too narrow, in units of their radius.
    for stretched in (1.15, 1 / 1.15):
        assert share_passed(1 - (1 - contents) ** (stretched**2)) < 0.3


@pytest.mark.parametrize("covered", [0.5, 0.95, 1.0])
def test_too_few_rows_say_nothing_of_calibration(summary: Document, covered: float) -> None:
    found = calibration(summary, covered, 99)
    assert (found.passed, found.numbers) == (False, COVERAGE_LEVELS | {"coverage_95": covered, "rows": 99})
    assert found.description == (
        f"the 50/68.3/90/95/99 % regions hold 50.0/68.3/90.0/{100 * covered:.1f}/99.0 % of the places, which are too "
        "few rows to tell whether that is right"
    )


def test_calibration_is_judged_for_each_number_of_arrival_times(summary: Document) -> None:
    few, four, more = summary["all"]["by_arrival_times"]

    def found() -> PromotionCheck:
        return checks(summary, 100.0)[2]

    few |= {"coverage_95": 0.1}  # of 99 rows
    assert found().passed
    assert found().numbers == {
        f"{name}_of_{group}": level for group in ("4", "7_and_more") for name, level in COVERAGE_LEVELS.items()
    }
    more |= {"coverage_50": 0.6, "coverage_90": 0.94}
    assert not found().passed
    four |= {"coverage_99": 0.9}
    assert found().description == (
        "on all 100 test rows with 4 arrival times the 99 % regions hold 90.0 % of the places (not within 95.0 to "
        "100.0 %), on all 1,301 test rows with 7 and more arrival times the 50/90 % regions hold 60.0/94.0 % of the "
        "places (not within 44.8 to 55.2, 86.5 to 93.5 %)"
    )
    assert verdict(summary, 100.0)[0] is False


@pytest.mark.parametrize(
    ("excess", "nats", "rows", "passed", "told"),
    [
        (
            0.11,
            0.24,
            880,
            True,
            "11.0 ± 2.0 % above that of the exact posterior, the limit, and the log density 0.24 ± ",
        ),
        (
            -0.004,
            -0.01,
            880,
            True,
            "0.4 ± 2.0 % below that of the exact posterior, the limit, and the log density 0.01 ",
        ),
        (0.02, 0.2401, 880, False, "0.03 nats below (5 % and 0.15 nats are allowed, and 3 standard errors)"),
        (0.1101, 0.1, 200, False, "0.10 ± 0.03 nats below (5 % and 0.15 nats are allowed, and 3 standard errors)"),
        (0.5, 0.9, 199, True, "0.90 ± 0.03 nats below (too few rows to judge by)"),
    ],
)
def test_the_distance_to_the_exact_posterior_is_judged(
    summary: Document, excess: float, nats: float, rows: int, passed: bool, told: str
) -> None:
    limit = summary["good_geometry"]["exact_posterior"]
    limit |= {"rows": rows, "rmse_excess": excess, "nats_below": nats}
    found = checks(summary, 100.0)[3]
    assert (found.name, found.passed) == ("near_exact_posterior", passed)
    assert found.description.startswith(f"on {rows} of these rows the RMSE is ")
    assert told in found.description
    assert found.numbers == {
        "rmse_excess": excess,
        "rmse_excess_error": 0.02,
        "nats_below": nats,
        "nats_below_error": 0.03,
        "rows": rows,
    }
    # An evaluation of an older version has no standard errors.
    limit |= {"rmse_excess_error": None, "nats_below_error": None}
    assert checks(summary, 100.0)[3].passed == (rows < 200 or (excess < 0.05 and nats < 0.15))


def test_without_an_exact_posterior_nothing_is_judged(summary: Document) -> None:
    for nothing in (None, summary["good_geometry"]["exact_posterior"] | {"rows": 0, "nats_below": None}):
        summary["good_geometry"]["exact_posterior"] = nothing
        found = checks(summary, 100.0)[3]
        assert (found.passed, found.description) == (True, "there is no exact posterior to compare it with")


def test_each_check_has_its_numbers(summary: Document) -> None:
    found = {check.name: check.numbers for check in checks(summary, 100.0)}
    del found["calibration_by_arrival_times"], found["near_exact_posterior"]
    assert found == {
        "accuracy": {"rmse_m": 68.04, "limit_m": 100.0, "rows": 1200},
        "calibration": {f"coverage_{name}": share for name, share in COVERED.items()} | {"rows": 1200},
        "better_than_classical": {"p95_m": 111.9, "limit_m": 162.1, "rows": 1190},
    }


NO_RIVAL = "no row has a fix by Huber Gauss-Newton to compare the p95 with"


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        (("estimators", "model", "rmse_m"), 312.0, "the RMSE of 312.0 m is above 100.0 m"),
        (
            ("calibration", "coverage_95"),
            0.9,
            "the 95 % regions hold 90.0 % of the places (not within 92.1 to 97.9 %)",
        ),
        (
            ("calibration", "coverage_95"),
            0.99,
            "the 95 % regions hold 99.0 % of the places (not within 92.1 to 97.9 %)",
        ),
        (
            ("on_common_rows", "model", "p95_m"),
            162.1,
            "the p95 of 162.1 m is not below Huber Gauss-Newton's 162.1 m",
        ),
        (("on_common_rows", "huber_gauss_newton"), None, NO_RIVAL),
        (("common_rows",), 0, NO_RIVAL),
        (("estimators", "model", "rows_without_fix"), 3, "the model gives no position on 3 rows"),
    ],
)
def test_each_failure_is_named(summary: Document, path: tuple[str, ...], value: float | None, reason: str) -> None:
    part = summary["good_geometry"]
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    assert verdict(summary, 100.0) == (
        False,
        f"Not promoted: on 1,200 test rows with GDOP < 5 {reason}.",
    )


def test_several_failures_are_one_sentence(summary: Document) -> None:
    worse = copy.deepcopy(summary)
    worse["good_geometry"]["calibration"]["coverage_95"] = 0.5
    assert verdict(worse, 10.0) == (
        False,
        "Not promoted: on 1,200 test rows with GDOP < 5 the RMSE of 68.0 m is above 10.0 m and the 95 % regions hold "
        "50.0 % of the places (not within 92.1 to 97.9 %).",
    )


@pytest.mark.parametrize(("rows", "without"), [(0, 0), (1200, 3)])
def test_all_checks_fail_where_there_is_nothing_to_go_by(summary: Document, rows: int, without: int) -> None:
    summary["good_geometry"]["rows"] = rows
    summary["good_geometry"]["estimators"]["model"]["rows_without_fix"] = without
    found = [(check.name, check.passed) for check in checks(summary, 100.0)]
    assert found == [(check.name, False) for check in EVALUATION_CHECKS]


def test_no_good_geometry(summary: Document) -> None:
    summary["good_geometry"]["rows"] = 0
    assert verdict(summary, 100.0) == (False, "Not promoted: none of the 1,500 test rows has GDOP < 5.")


def test_on_real_comparisons(by_time: Comparison, by_level: Comparison) -> None:
    """Also after a round trip through JSON, which turns enumeration members into strings."""
    whole = by_time.summary().document()
    found = checks(json.loads(json.dumps(whole)), 100.0)
    # Errors of the truth plus the noise that is claimed are calibrated, and nothing knows of the signals' geometry.
    assert {check.name for check in found if not check.passed} == {"near_exact_posterior"}
    rows = len(by_level.gdop)
    promoted, reason = verdict(by_level.summary().document(), 100.0)
    assert not promoted
    assert reason == f"Not promoted: none of the {rows:,} test rows has GDOP < 5 (there are no arrival times)."


def test_each_check_has_its_own_result(summary: Document) -> None:
    summary["good_geometry"]["calibration"]["coverage_95"] = 0.5
    found = {check.name: check.passed for check in checks(summary, 10.0)}
    assert found == {
        "accuracy": False,
        "calibration": False,
        "calibration_by_arrival_times": True,
        "near_exact_posterior": True,
        "better_than_classical": True,
    }


ERRORS_M = np.arange(1.0, 102.0)  # p50 51 m, p95 96 m
EVERYWHERE = np.ones(101, bool)


def test_challenger_may_be_worse_by_the_noise_of_the_sample() -> None:
    limit = 1.02
    assert not_worse_than_production(ERRORS_M * limit, ERRORS_M, EVERYWHERE, "locator", 3).passed
    passed = not_worse_than_production(ERRORS_M * limit, ERRORS_M, EVERYWHERE, "locator", 3)
    assert passed.description == "the p95 of 97.9 m is at most 1.02 times the 96.0 m of locator/3 in production"
    worse = not_worse_than_production(ERRORS_M * (limit + 0.001), ERRORS_M, EVERYWHERE, "locator", 3)
    assert not worse.passed
    assert worse.description == "the p95 of 98.0 m is above 1.02 times the 96.0 m of locator/3 in production"
    assert worse.numbers == pytest.approx(
        {
            "champion_version": 3,
            "compared_rows": 101,
            "challenger_p50_m": 51 * 1.021,
            "challenger_p95_m": 96 * 1.021,
            "champion_p50_m": 51,
            "champion_p95_m": 96,
        }
    )


def test_both_are_compared_on_good_geometry_or_else_on_all_rows() -> None:
    good = ERRORS_M < 50
    challenger_m = np.where(good, ERRORS_M, 10 * ERRORS_M)
    assert not_worse_than_production(challenger_m, ERRORS_M, good, "locator", 1).passed
    assert not not_worse_than_production(challenger_m, ERRORS_M, ~EVERYWHERE, "locator", 1).passed


def test_both_are_compared_where_both_have_a_fix() -> None:
    challenger_m, champion_m = ERRORS_M.copy(), ERRORS_M.copy()
    challenger_m[0], champion_m[-1] = np.nan, np.nan
    numbers = not_worse_than_production(challenger_m, champion_m, EVERYWHERE, "locator", 1).numbers
    assert (numbers["compared_rows"], numbers["challenger_p50_m"], numbers["champion_p50_m"]) == (99, 51, 51)
    nothing = not_worse_than_production(np.full(101, np.nan), champion_m, EVERYWHERE, "locator", 1)
    assert (nothing.passed, nothing.numbers) == (False, {})
    assert nothing.description == "there is no test row that both it and locator/1 in production locate"


def test_the_descriptions_of_the_checks_follow_the_limits() -> None:
    assert CALIBRATION.description == (
        "On good geometry, the regions of 50/68.3/90/95/99 % hold that share of the true places, within 1 percentage "
        "point plus 3 standard errors of the sample. Fewer than 100 rows are too few to tell, and do not pass."
    )
    assert NEAR_EXACT_POSTERIOR.description.startswith(
        "On good geometry, the log density at the true places is at most 0.15 nats below that of the exact posterior, "
        "and the RMSE at most 5 % above, by no more than 3 standard errors of the sample. Fewer than 200 rows"
    )
    assert "at most 2 % above" in NOT_WORSE_THAN_PRODUCTION.description
