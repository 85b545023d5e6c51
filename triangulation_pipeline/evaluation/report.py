"""The few numbers of a comparison that people read first."""

from typing import Any

from triangulation_pipeline.evaluation.comparison import Estimator, Subset, Summary

SHOWN_RIVALS = (
    Estimator.power_weighted_centroid,
    Estimator.gauss_newton,
    Estimator.huber_gauss_newton,
    Estimator.mixture_ml,
    Estimator.mixture_ml_from_truth,
    Estimator.level_posterior_mean,
)


def headline(summary: Summary) -> dict[str, float | None]:
    """Flat names with units: ``test_rmse_m`` and the like are the model's, ``{estimator}_rmse_m`` a rival's,
    ``crlb_rms_m`` the bound's; ``..._good_geom_m`` is on good geometry. Each estimator's numbers are over
    the rows it has a fix on; ``..._rows_without_fix`` counts the others. None where there is no such number."""
    numbers: dict[str, float | None] = {}
    for subset, suffix in ((Subset.all, ""), (Subset.good_geometry, "_good_geom")):
        part = summary[subset]
        for estimator in (Estimator.model, *SHOWN_RIVALS):
            statistics = part["estimators"][estimator] or {}
            prefix = "test" if estimator is Estimator.model else estimator.value
            for name in ("rmse", "p50", "p95"):
                numbers[f"{prefix}_{name}{suffix}_m"] = statistics.get(f"{name}_m")
            numbers[f"{prefix}_rows_without_fix{suffix}"] = statistics.get("rows_without_fix")
        for name in ("crlb_rms", "crlb_p50", "mixture_crlb_rms"):
            numbers[f"{name}{suffix}_m"] = part[f"{name}_m"]
        for name in ("coverage_68", "coverage_95", "nees_p50"):
            numbers[f"test_{name}{suffix}"] = part["calibration"][name]
    return numbers


def estimator_table(summary: Summary, subset: Subset) -> list[dict[str, Any]]:
    """A row an estimator that exists for the scenario: its error statistics on the rows it has a fix on."""
    estimators = summary[subset]["estimators"]
    return [{"estimator": name, **statistics} for name, statistics in estimators.items() if statistics is not None]
