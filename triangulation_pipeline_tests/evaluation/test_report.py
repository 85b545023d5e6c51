import json

import pytest

from triangulation_pipeline.evaluation.comparison import Comparison
from triangulation_pipeline.evaluation.estimators import GAUSS_NEWTON, HUBER_GAUSS_NEWTON, MODEL
from triangulation_pipeline.evaluation.report import (
    HEADLINE,
    HEADLINE_NAMES,
    estimator_table,
    group_table,
    headline,
    posterior_table,
)
from triangulation_pipeline.evaluation.summary import Evaluation, Subset
from triangulation_pipeline.evaluation.verdict import promotion_checks, promotion_verdict

from .conftest import some_comparison

SHOWN = {
    "test": "model",
    "model_mode": "model_mode",
    "strongest_receiver": "strongest_receiver",
    "nearest_fingerprints": "nearest_fingerprints",
    "chan": "chan",
    "power_weighted_centroid": "power_weighted_centroid",
    "gauss_newton": "gauss_newton",
    "huber_gauss_newton": "huber_gauss_newton",
    "mixture_ml": "mixture_ml",
}


def test_each_number_of_the_headline_is_that_of_the_summary() -> None:
    summary = some_comparison().summary()
    document = summary.document()
    expected = {}
    for part, suffix in ((document["all"], ""), (document["good_geometry"], "_good_geom")):
        for prefix, name in SHOWN.items():
            statistics = part["estimators"][name]
            expected |= {
                f"{prefix}_rmse{suffix}_m": statistics["rmse_m"],
                f"{prefix}_p50{suffix}_m": statistics["p50_m"],
                f"{prefix}_p95{suffix}_m": statistics["p95_m"],
                f"{prefix}_rows_without_fix{suffix}": statistics["rows_without_fix"],
            }
        limit = part["exact_posterior"]
        expected |= {
            f"exact_posterior_rows{suffix}": limit["rows"],
            f"exact_posterior_rmse{suffix}_m": limit["posterior"]["rmse_m"],
            f"exact_posterior_p50{suffix}_m": limit["posterior"]["p50_m"],
            f"exact_posterior_p95{suffix}_m": limit["posterior"]["p95_m"],
            f"test_rmse_above_posterior{suffix}": limit["rmse_excess"],
            f"test_nats_below_posterior{suffix}": limit["nats_below"],
            f"crlb_rms{suffix}_m": part["crlb_rms_m"],
            f"crlb_p50{suffix}_m": part["crlb_p50_m"],
            f"mixture_crlb_rms{suffix}_m": part["mixture_crlb_rms_m"],
            **{
                f"test_coverage_{name}{suffix}": part["calibration"][f"coverage_{name}"]
                for name in (50, 68, 90, 95, 99)
            },
        }
    assert headline(summary) == expected
    # Numbers that are not the same cannot stand for each other.
    measured = [value for name, value in expected.items() if "rows" not in name and "coverage" not in name]
    assert len(set(measured)) == len(measured)


def test_the_headline_has_no_number_of_an_estimator_that_does_not_exist(handmade: Comparison) -> None:
    numbers = headline(handmade.summary())
    absent = ("mixture_ml_rmse", "mixture_ml_rows", "power_weighted_centroid")
    assert {value for name, value in numbers.items() if name.startswith(absent)} == {None}
    assert numbers["gauss_newton_rows_without_fix"] == 1
    assert numbers["test_rmse_good_geom_m"] != numbers["test_rmse_m"]


def test_the_table_has_a_row_for_each_estimator_that_exists(handmade: Comparison) -> None:
    summary = handmade.summary()
    for subset in Subset:
        table = estimator_table(summary, subset)
        assert [row["estimator"] for row in table] == [
            MODEL.name,
            GAUSS_NEWTON.name,
            HUBER_GAUSS_NEWTON.name,
        ]
        for row in table:
            assert row == {"estimator": row["estimator"], **summary.document()[subset]["estimators"][row["estimator"]]}
    assert estimator_table(summary, Subset.all) != estimator_table(summary, Subset.good_geometry)


def test_a_number_of_the_headline_has_a_unit_and_a_sentence(handmade: Comparison) -> None:
    assert list(HEADLINE_NAMES) == list(headline(handmade.summary()))
    for number in HEADLINE:
        assert number.unit == ("m" if number.name.endswith("_m") else "rows" if "rows" in number.name else "1")
        assert number.description.endswith(".")


def test_an_evaluation_is_read_back_as_it_was_stored(handmade: Comparison) -> None:
    summary = handmade.summary()
    verdict = {"headline": {"test_rmse_m": 1.5}, "max_rmse_m": 100.0, "promoted": False, "promotion_reason": "no"}
    document = json.loads(json.dumps(summary.document() | verdict))
    found = Evaluation.model_validate(document)
    assert found.document() == document
    assert found.headline == {"test_rmse_m": 1.5}
    assert found.subset(Subset.good_geometry) == summary.good_geometry


def test_an_evaluation_of_an_older_version_is_read(handmade: Comparison) -> None:
    """It compared with another limit, had ellipses for regions, and no groups."""
    document = json.loads(json.dumps(handmade.summary().document()))
    verdict = {"headline": {"test_rmse_m": 1.5}, "max_rmse_m": 100.0, "promoted": False, "promotion_reason": "no"}
    for part in (document["all"], document["good_geometry"]):
        for name in ("exact_posterior", "by_arrival_times", "by_gdop", "by_hull"):
            del part[name]
        del part["calibration"]["coverage_99"]
        part["calibration"] |= {"nees_p50": 1.4, "nees_mean": 3.0, "nees_trimmed_mean": 1.9}
        part["by_detections"] = [{"detections": 7, "count": 4}]
        part["estimators"]["mixture_ml_from_truth"] = part["estimators"]["model"]
        part["on_common_rows"]["mixture_ml_from_truth"] = part["on_common_rows"]["model"]
        part["ratios"] |= {f"{name}_over_ceiling": 2.0 for name in ("p50", "p95", "rmse")}
    found = Evaluation.model_validate(document | verdict | {"ceiling": "mixture_ml_from_truth", "nees_expected": {}})
    assert found.good_geometry.exact_posterior is None
    assert found.good_geometry.model.count == 4
    assert {value for name, value in headline(found).items() if "posterior" in name} == {None}
    assert posterior_table(found) == []
    checks = promotion_checks(found, 100.0)
    assert [check.passed for check in checks] == [True, False, True, True, True]
    assert "too few rows to tell" in promotion_verdict(found, checks)[1]


def test_the_table_of_groups_has_a_row_for_each(handmade: Comparison) -> None:
    groups = handmade.summary().all.by_arrival_times
    table = group_table(groups)
    assert [row["name"] for row in table] == ["3", "6", "7 and more"]
    assert table[2] == dict(groups[2])


def test_the_table_of_the_limit_has_both_on_both_subsets(handmade: Comparison) -> None:
    summary = handmade.summary()
    table = posterior_table(summary)
    assert [(row["test rows"], row["density"], row["count"]) for row in table] == [
        ("all", "exact posterior", 4),
        ("all", "model", 4),
        ("good geometry", "exact posterior", 3),
        ("good geometry", "model", 3),
    ]
    assert (table[2]["p50_m"], table[3]["p50_m"]) == (16, 20)
    assert (table[2]["log_density"], table[3]["log_density"]) == (-9, pytest.approx(-28.75 / 3))
    assert table[2]["coverage_68"] == pytest.approx(2 / 3)
