import json

from triangulation_pipeline.evaluation.comparison import Comparison
from triangulation_pipeline.evaluation.estimators import GAUSS_NEWTON, HUBER_GAUSS_NEWTON, MIXTURE_ML_FROM_TRUTH, MODEL
from triangulation_pipeline.evaluation.report import HEADLINE, HEADLINE_NAMES, estimator_table, headline
from triangulation_pipeline.evaluation.summary import Evaluation, Subset

from .conftest import some_comparison

SHOWN = {
    "test": "model",
    "power_weighted_centroid": "power_weighted_centroid",
    "gauss_newton": "gauss_newton",
    "huber_gauss_newton": "huber_gauss_newton",
    "mixture_ml": "mixture_ml",
    "mixture_ml_from_truth": "mixture_ml_from_truth",
    "rss_posterior_mean": "rss_posterior_mean",
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
        expected |= {
            f"crlb_rms{suffix}_m": part["crlb_rms_m"],
            f"crlb_p50{suffix}_m": part["crlb_p50_m"],
            f"mixture_crlb_rms{suffix}_m": part["mixture_crlb_rms_m"],
            f"test_coverage_68{suffix}": part["calibration"]["coverage_68"],
            f"test_coverage_95{suffix}": part["calibration"]["coverage_95"],
            f"test_nees_p50{suffix}": part["calibration"]["nees_p50"],
        }
    assert headline(summary) == expected
    # Numbers that are not the same cannot stand for each other.
    measured = [value for name, value in expected.items() if "rows" not in name and "coverage" not in name]
    assert len(set(measured)) == len(measured)


def test_the_headline_has_no_number_of_an_estimator_that_does_not_exist(handmade: Comparison) -> None:
    numbers = headline(handmade.summary())
    absent = ("mixture_ml_rmse", "mixture_ml_rows", "rss_posterior_mean", "power_weighted_centroid")
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
            MIXTURE_ML_FROM_TRUTH.name,
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
    """Also one of an older version, whose headline has other numbers."""
    summary = handmade.summary()
    verdict = {"headline": {"test_rmse_m": 1.5}, "max_rmse_m": 100.0, "promoted": False, "promotion_reason": "no"}
    document = json.loads(json.dumps(summary.document() | verdict))
    found = Evaluation.model_validate(document)
    assert found.document() == document
    assert (found.headline, found.oracle) == ({"test_rmse_m": 1.5}, "mixture_ml_from_truth")
    assert found.subset(Subset.good_geometry) == summary.good_geometry
