import copy
import json
import math
from typing import Any

import numpy as np
import pytest

from triangulation_pipeline.evaluation.comparison import Comparison
from triangulation_pipeline.evaluation.summary import Summary
from triangulation_pipeline.evaluation.verdict import (
    CALIBRATION,
    LEAST_ROWS,
    NOT_WORSE_THAN_PRODUCTION,
    PromotionCheck,
    coverage_limits,
    not_worse_than_production,
    promotion_checks,
    promotion_verdict,
)
from triangulation_pipeline_tests.evaluation.conftest import some_comparison

Document = dict[str, Any]


def checks(document: Document, max_rmse_m: float) -> list[PromotionCheck]:
    return promotion_checks(Summary.model_validate(document), max_rmse_m)


def verdict(document: Document, max_rmse_m: float) -> tuple[bool, str]:
    return promotion_verdict(Summary.model_validate(document), checks(document, max_rmse_m))


def calibration(summary: Document, covered: float, rows: int) -> PromotionCheck:
    part = summary["good_geometry"]
    good = part | {"rows": rows, "calibration": part["calibration"] | {"coverage_95": covered}}
    (found,) = (c for c in checks(summary | {"good_geometry": good}, 100.0) if c.name == "calibration")
    return found


@pytest.fixture
def summary() -> Document:
    """As it is stored; what a verdict looks at is such that all three checks pass."""
    document = some_comparison().summary().document() | {"max_gdop": 5.0}
    document["all"] |= {"rows": 1500}
    good = document["good_geometry"]
    good |= {"rows": 1200, "common_rows": 1190}
    good["estimators"]["model"] |= {"rmse_m": 68.04, "rows_without_fix": 0}
    good["on_common_rows"]["model"] |= {"p95_m": 111.9}
    good["on_common_rows"]["huber_gauss_newton"] |= {"p95_m": 162.1}
    good["calibration"] |= {"coverage_95": 0.9391}
    document["all"]["exact_posterior"] = good["exact_posterior"] = None
    return document


def test_promoted(summary: Document) -> None:
    assert verdict(summary, 100.0) == (
        True,
        "Promoted: on 1,200 test rows with GDOP < 5 the RMSE of 68.0 m is within 100.0 m, the 95 % ellipse covers "
        "93.9 % (within 91.6 to 98.0 %) and the p95 of 111.9 m is below Huber Gauss-Newton's 162.1 m.",
    )


@pytest.mark.parametrize(
    ("excess", "nats", "told"),
    [
        (0.0312, 0.254, "3.1 % above that of the exact posterior, the limit, and its log density 0.25 nats below."),
        (-0.004, -0.01, "0.4 % below that of the exact posterior, the limit, and its log density 0.01 nats above."),
    ],
)
def test_the_distance_to_the_exact_posterior_is_told(summary: Document, excess: float, nats: float, told: str) -> None:
    plain = verdict(summary, 100.0)[1]
    limit = some_comparison().summary().document()["all"]["exact_posterior"]
    found = limit | {"rows": 880, "rmse_excess": excess, "nats_below": nats}
    summary["good_geometry"]["exact_posterior"] = found
    assert verdict(summary, 100.0) == (True, f"{plain} On 880 of these rows its RMSE is {told}")
    # Without a row of good geometry it is told of all.
    summary["good_geometry"] |= {"rows": 0, "exact_posterior": None}
    summary["all"]["exact_posterior"] = found
    assert verdict(summary, 100.0)[1].endswith(f"On 880 of these rows its RMSE is {told}")


def test_limits_are_inclusive(summary: Document) -> None:
    assert verdict(summary, 68.04)[0]
    assert not verdict(summary, 68.03)[0]


@pytest.mark.parametrize(
    ("covered", "rows", "passed"),
    [
        # The same shares, of ever more rows.
        (0.974, 422, True),
        (0.974, 6_600, True),
        (0.976, 6_600, False),
        (0.974, 100_000, False),
        (0.908, 422, True),
        (0.904, 422, False),
        (0.926, 6_600, True),
        (0.926, 100_000, False),
        (0.99, 422, False),
    ],
)
def test_the_limits_of_calibration_leave_room_for_chance(
    summary: Document, covered: float, rows: int, passed: bool
) -> None:
    assert calibration(summary, covered, rows).passed == passed


@pytest.mark.parametrize("rows", [125, 1200, 100_000])
def test_the_limits_of_calibration_are_inclusive(summary: Document, rows: int) -> None:
    """1.96 standard errors of the share below 93 % and above 97 %."""
    low = 0.93 - 1.96 * math.sqrt(0.93 * 0.07 / rows)
    high = 0.97 + 1.96 * math.sqrt(0.97 * 0.03 / rows)
    limits = coverage_limits(rows)
    assert limits == pytest.approx((low, high), rel=1e-12)
    assert limits is not None
    for covered, outwards in zip(limits, (0.0, 1.0), strict=True):
        assert calibration(summary, covered, rows).passed
        assert not calibration(summary, math.nextafter(covered, outwards), rows).passed


def test_a_model_that_is_just_good_enough_passes_on_nearly_all_samples(summary: Document) -> None:
    rng = np.random.default_rng(0)
    for share in (0.93, 0.97):
        covered = rng.binomial(422, share, 2000) / 422
        passed = [calibration(summary, float(found), 422).passed for found in covered]
        assert np.mean(passed) > 0.96
    for share in (0.86, 0.999):
        covered = rng.binomial(422, share, 2000) / 422
        assert np.mean([calibration(summary, float(found), 422).passed for found in covered]) < 0.05


@pytest.mark.parametrize("covered", [0.5, 0.95, 1.0])
def test_too_few_rows_say_nothing_of_calibration(summary: Document, covered: float) -> None:
    """Below 125 the upper limit is 100 %, which nothing can exceed."""
    assert calibration(summary, 1.0, 125).description == (
        "the 95 % ellipse covers 100.0 % (not within 88.5 to 100.0 %)"
    )
    found = calibration(summary, covered, 124)
    assert (found.passed, found.numbers) == (False, {"coverage_95": covered, "rows": 124})
    assert found.description == (
        f"the 95 % ellipse covers {100 * covered:.1f} %, of too few rows to tell whether that is right"
    )
    assert coverage_limits(0) is None


def test_each_check_has_its_numbers(summary: Document) -> None:
    found = {check.name: check.numbers for check in checks(summary, 100.0)}
    assert found == {
        "accuracy": {"rmse_m": 68.04, "limit_m": 100.0, "rows": 1200},
        "calibration": {
            "coverage_95": 0.9391,
            "lowest": pytest.approx(0.93 - 1.96 * 0.007365, abs=1e-5),
            "highest": pytest.approx(0.97 + 1.96 * 0.004924, abs=1e-5),
            "rows": 1200,
        },
        "better_than_classical": {"p95_m": 111.9, "limit_m": 162.1, "rows": 1190},
    }


NO_RIVAL = "no row has a fix by Huber Gauss-Newton to compare the p95 with"


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        (("estimators", "model", "rmse_m"), 312.0, "the RMSE of 312.0 m is above 100.0 m"),
        (("calibration", "coverage_95"), 0.9, "the 95 % ellipse covers 90.0 % (not within 91.6 to 98.0 %)"),
        (("calibration", "coverage_95"), 0.99, "the 95 % ellipse covers 99.0 % (not within 91.6 to 98.0 %)"),
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
        "Not promoted: on 1,200 test rows with GDOP < 5 the RMSE of 68.0 m is above 10.0 m and the 95 % ellipse covers "
        "50.0 % (not within 91.6 to 98.0 %).",
    )


@pytest.mark.parametrize(("rows", "without"), [(0, 0), (1200, 3)])
def test_all_checks_fail_where_there_is_nothing_to_go_by(summary: Document, rows: int, without: int) -> None:
    summary["good_geometry"]["rows"] = rows
    summary["good_geometry"]["estimators"]["model"]["rows_without_fix"] = without
    found = [(check.name, check.passed) for check in checks(summary, 100.0)]
    assert found == [("accuracy", False), ("calibration", False), ("better_than_classical", False)]


def test_no_good_geometry(summary: Document) -> None:
    summary["good_geometry"]["rows"] = 0
    assert verdict(summary, 100.0) == (False, "Not promoted: none of the 1,500 test rows has GDOP < 5.")


def test_on_real_comparisons(by_time: Comparison, by_level: Comparison) -> None:
    """Also after a round trip through JSON, which turns enumeration members into strings."""
    promoted, reason = verdict(json.loads(json.dumps(by_time.summary().document())), 100.0)
    assert promoted, reason
    rows = len(by_level.nees)
    promoted, reason = verdict(by_level.summary().document(), 100.0)
    assert not promoted
    assert reason.startswith(
        f"Not promoted: none of the {rows:,} test rows has GDOP < 5 (there are no arrival times). On these rows its "
        "RMSE is "
    )


def test_each_check_has_its_own_result(summary: Document) -> None:
    summary["good_geometry"]["calibration"]["coverage_95"] = 0.5
    found = {check.name: check.passed for check in checks(summary, 10.0)}
    assert found == {"accuracy": False, "calibration": False, "better_than_classical": True}


ERRORS_M = np.arange(1.0, 102.0)  # p50 51 m, p95 96 m
EVERYWHERE = np.ones(101, bool)


def test_challenger_may_be_worse_by_the_noise_of_the_sample() -> None:
    limit = 1.02
    assert not_worse_than_production(ERRORS_M * limit, ERRORS_M, EVERYWHERE, 3).passed
    passed = not_worse_than_production(ERRORS_M * limit, ERRORS_M, EVERYWHERE, 3)
    assert passed.description == "the p95 of 97.9 m is at most 1.02 times the 96.0 m of version 3 in production"
    worse = not_worse_than_production(ERRORS_M * (limit + 0.001), ERRORS_M, EVERYWHERE, 3)
    assert not worse.passed
    assert worse.description == "the p95 of 98.0 m is above 1.02 times the 96.0 m of version 3 in production"
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
    assert not_worse_than_production(challenger_m, ERRORS_M, good, 1).passed
    assert not not_worse_than_production(challenger_m, ERRORS_M, ~EVERYWHERE, 1).passed


def test_both_are_compared_where_both_have_a_fix() -> None:
    challenger_m, champion_m = ERRORS_M.copy(), ERRORS_M.copy()
    challenger_m[0], champion_m[-1] = np.nan, np.nan
    numbers = not_worse_than_production(challenger_m, champion_m, EVERYWHERE, 1).numbers
    assert (numbers["compared_rows"], numbers["challenger_p50_m"], numbers["champion_p50_m"]) == (99, 51, 51)
    nothing = not_worse_than_production(np.full(101, np.nan), champion_m, EVERYWHERE, 1)
    assert (nothing.passed, nothing.numbers) == (False, {})
    assert nothing.description == "there is no test row that both it and version 1 in production locate"


def test_the_descriptions_of_the_checks_follow_the_limits() -> None:
    assert CALIBRATION.description == (
        "The 95 % ellipse covers 93 to 97 % of the errors on good geometry; both limits are widened by 1.96 standard "
        "errors of the sample. Fewer than 125 rows are too few to tell, and do not pass."
    )
    assert "at most 2 % above" in NOT_WORSE_THAN_PRODUCTION.description
    assert LEAST_ROWS == 125
