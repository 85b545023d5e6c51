import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from statistics import median, stdev
from typing import Any

import numpy as np
import pytest
from scipy.spatial import Delaunay

import triangulation_pipeline.evaluation.reference
from triangulation_pipeline.evaluation.comparison import Comparison, compare, errors_m
from triangulation_pipeline.evaluation.estimators import (
    CHAN,
    ESTIMATORS,
    GAUSS_NEWTON,
    HUBER_GAUSS_NEWTON,
    MIXTURE_ML,
    MODEL,
    MODEL_MODE,
    NEAREST_FINGERPRINTS,
    POWER_WEIGHTED_CENTROID,
    STRONGEST_RECEIVER,
    Estimator,
)
from triangulation_pipeline.evaluation.reference import reference_rows
from triangulation_pipeline.evaluation.summary import COVERAGE_LEVELS, Subset
from triangulation_pipeline.network import NORTH_WEST_ITALY, ReceiverNetwork, Timing, random_network
from triangulation_pipeline.physics.dataset_spec import ROWS_PER_LAYOUT, DatasetSpec
from triangulation_pipeline.physics.geometry import Geometry
from triangulation_pipeline.physics.layout import Layouts
from triangulation_pipeline.physics.posterior import exact_posterior
from triangulation_pipeline.physics.scenario import PRESETS, Preset, Scenario
from triangulation_pipeline.physics.simulator import simulate
from triangulation_pipeline.physics.solvers.chan import chan
from triangulation_pipeline.physics.solvers.fingerprint import nearest_fingerprints
from triangulation_pipeline.physics.solvers.gauss_newton import Loss, gauss_newton
from triangulation_pipeline.physics.solvers.mixture import mixture_crlb_m, mixture_maximum_likelihood
from triangulation_pipeline.physics.solvers.signal_strength import power_weighted_centroid, strongest_receiver
from triangulation_pipeline.positions.mixtures import MixturePositions
from triangulation_pipeline.positions.points import Positions
from triangulation_pipeline.samples import Samples, Split
from triangulation_pipeline_tests.evaluation.conftest import (
    SIGMA_M,
    anything,
    cut,
    gaussian,
    some_comparison,
    spec_of,
)

BY_TIME = (
    CHAN,
    GAUSS_NEWTON,
    HUBER_GAUSS_NEWTON,
    MIXTURE_ML,
)


def test_estimators_by_hand(handmade: Comparison) -> None:
    summary = handmade.summary().document()
    everything, good = summary["all"], summary["good_geometry"]
    assert (everything["rows"], good["rows"]) == (5, 4)
    assert (everything["common_rows"], good["common_rows"]) == (4, 3)
    model = good["estimators"]["model"]
    assert model["count"] == 4
    assert model["rmse_m"] == pytest.approx(np.sqrt(750))
    assert (model["p50_m"], model["max_m"], model["rows_without_fix"]) == (25, 40, 0)
    linear = good["estimators"]["gauss_newton"]
    assert (linear["count"], linear["rows_without_fix"], linear["p50_m"]) == (3, 1, 50)
    # The third row is left out for all, since one has no fix there.
    assert good["on_common_rows"]["model"]["rmse_m"] == pytest.approx(np.sqrt(700))
    assert good["on_common_rows"]["huber_gauss_newton"]["p50_m"] == 40
    for name in ("mixture_ml", "power_weighted_centroid"):
        assert good["estimators"][name] is None
        assert good["on_common_rows"][name] is None


def test_bounds_and_ratios_by_hand(handmade: Comparison) -> None:
    good = handmade.summary().document()["good_geometry"]
    assert (good["crlb_p50_m"], good["mixture_crlb_p50_m"]) == (25, 50)
    assert good["crlb_rms_m"] == pytest.approx(np.sqrt(750))
    assert good["mixture_crlb_rms_m"] == pytest.approx(2 * np.sqrt(750))
    assert good["ratios"] == pytest.approx(
        {
            "p50_over_crlb_p50": 1.0,
            "rmse_over_crlb_rms": 1.0,
            "p50_over_mixture_crlb_p50": 0.5,
            "rmse_over_mixture_crlb_rms": 0.5,
            "p50_over_huber": 0.5,
            "p95_over_huber": 0.5,
            "rmse_over_huber": 0.5,
        }
    )


def test_calibration_by_hand(handmade: Comparison) -> None:
    summary = handmade.summary().document()
    assert summary["good_geometry"]["calibration"] == {
        "coverage_50": 0.5,
        "coverage_68": 0.5,
        "coverage_90": 0.75,
        "coverage_95": 0.75,
        "coverage_99": 1.0,
    }
    # A row without a position is not covered.
    assert summary["all"]["calibration"]["coverage_99"] == 0.8


def test_groups_by_hand(handmade: Comparison) -> None:
    everything = handmade.summary().document()["all"]
    three, six, more = everything["by_arrival_times"]
    assert [(group["name"], group["count"]) for group in (three, six, more)] == [
        ("3", 1),
        ("6", 2),
        ("7 and more", 2),
    ]
    assert more == {
        "name": "7 and more",
        "count": 2,
        "p50_m": 15.0,
        "rmse_m": pytest.approx(np.sqrt(250)),
        "best_baseline": "huber_gauss_newton",
        "best_baseline_p50_m": 30.0,
        "best_baseline_rmse_m": pytest.approx(np.sqrt(1000)),
        "posterior_rows": 2,
        "rmse_excess": pytest.approx(0.25),
        "nats_below": 0.375,
        "coverage_50": 1.0,
        "coverage_68": 1.0,
        "coverage_90": 1.0,
        "coverage_95": 1.0,
        "coverage_99": 1.0,
    }
    # Without a fix on one of two rows Gauss-Newton's median is infinite, although its error on the other is small.
    assert six["best_baseline"] == "huber_gauss_newton"
    assert three["best_baseline"] == "gauss_newton"
    assert [(group["name"], group["count"]) for group in everything["by_gdop"]] == [
        ("below 2", 1),
        ("2 to 5", 3),
        ("5 to 10", 1),
    ]
    assert [(group["name"], group["count"]) for group in everything["by_hull"]] == [("inside", 2), ("outside", 3)]


def test_bins_and_selective_risk_by_hand(handmade: Comparison) -> None:
    good = handmade.summary().document()["good_geometry"]
    # Surest first: 20, 30, 40 and 10 metres off.
    bins = good["by_predicted_rms"]
    assert [part["rmse_m"] for part in bins] == [20, 30, 40, 10]
    assert [(part["low_m"], part["high_m"]) for part in bins] == [(10, 10), (20, 20), (30, 30), (40, 40)]
    risk = {point["retained"]: (point["count"], point["rmse_m"]) for point in good["selective_risk"]}
    assert risk[0.5] == (2, pytest.approx(np.sqrt(650)))
    assert risk[1.0] == (4, pytest.approx(np.sqrt(750)))
    assert 0.1 not in risk  # no row is left


def finite(values: Iterable[float]) -> list[float]:
    return sorted(value for value in values if math.isfinite(value))


def rms(values: list[float]) -> float | None:
    return math.sqrt(sum(value**2 for value in values) / len(values)) if values else None


def percentile(values: list[float], share: float) -> float | None:
    """By straight lines between the sorted values."""
    if not values:
        return None
    place = share / 100 * (len(values) - 1)
    below, above = sorted(values)[math.floor(place)], sorted(values)[math.ceil(place)]
    return below + (place % 1) * (above - below)


def mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def coverages(content: list[float]) -> dict[str, float | None]:
    """What is no number lies outside."""
    levels = ((50, 0.5), (68, 0.683), (90, 0.9), (95, 0.95), (99, 0.99))
    return {f"coverage_{name}": mean([float(value <= level) for value in content]) for name, level in levels}


def statistics(distances: list[float]) -> dict[str, Any]:
    return {
        "count": len(distances),
        "rmse_m": rms(distances),
        "mean_m": mean(distances),
        **{f"p{share}_m": percentile(distances, share) for share in (50, 68, 95, 99)},
        "max_m": max(distances, default=None),
    }


def over(mine: float | None, others: float | None) -> float | None:
    return None if mine is None or others is None else mine / others


def defined_posterior(comparison: Comparison, rows: list[int]) -> dict[str, Any]:
    """On the rows on which everything is known."""
    reference, model_m = comparison.reference, comparison.model_m
    both = (reference.distance_m, reference.log_density, reference.model_log_density, model_m)
    known = [i for i in rows if all(math.isfinite(values[i]) for values in both)]
    posterior = {
        **statistics([reference.distance_m[i] for i in known]),
        "log_density": mean([reference.log_density[i] for i in known]),
        **coverages([reference.content[i] for i in known]),
    }
    model = {
        **statistics([model_m[i] for i in known]),
        "log_density": mean([reference.model_log_density[i] for i in known]),
        **coverages([comparison.content[i] for i in known]),
    }
    excess = over(model["rmse_m"], posterior["rmse_m"])
    apart = [reference.log_density[i] - reference.model_log_density[i] for i in known]
    error = None
    if len(known) > 1:
        # By propagation of the covariance of both mean squares.
        squares = np.array([[model_m[i] ** 2, reference.distance_m[i] ** 2] for i in known])
        mine, limit = squares.mean(0)
        slope = np.array([0.5 / math.sqrt(mine * limit), -0.5 * math.sqrt(mine / limit**3)])
        error = math.sqrt(slope @ np.cov(squares.T) @ slope / len(known))
    return {
        "rows": len(known),
        "posterior": posterior,
        "model": model,
        "rmse_excess": None if excess is None else excess - 1,
        "rmse_excess_error": error,
        "nats_below": mean(apart),
        "nats_below_error": stdev(apart) / math.sqrt(len(known)) if len(known) > 1 else None,
    }


def defined_summary(comparison: Comparison, subset: Subset) -> dict[str, Any]:
    """Each number of a subset's summary by its definition, row by row."""
    rows = [i for i in range(len(comparison.gdop)) if subset is Subset.all or comparison.gdop[i] < comparison.max_gdop]
    distances = {name: values for name, values in comparison.distance_m.items() if values is not None}
    common = [i for i in rows if all(math.isfinite(values[i]) for values in distances.values())]
    model, predicted_m, content = distances[MODEL], comparison.predicted_rms_m, comparison.content

    def bounds(of: list[int]) -> dict[str, Any]:
        known, mixture = (finite(b[i] for i in of) for b in (comparison.crlb_m, comparison.mixture_crlb_m))
        return {
            "crlb_rms_m": rms(known),
            "crlb_p50_m": percentile(known, 50),
            "mixture_crlb_rms_m": rms(mixture),
            "mixture_crlb_p50_m": percentile(mixture, 50),
        }

    def part(of: list[int]) -> dict[str, Any]:
        return {
            "count": len(of),
            "predicted_rms_m": rms([predicted_m[i] for i in of]),
            "rmse_m": rms([model[i] for i in of]),
            "p50_m": percentile([model[i] for i in of], 50),
            "coverage_95": coverages([content[i] for i in of])["coverage_95"],
        }

    def groups(names: dict[str, Callable[[int], bool]]) -> list[dict[str, Any]]:
        found = []
        for name, belongs in names.items():
            of = [i for i in rows if belongs(i)]
            limit = defined_posterior(comparison, of)
            medians = {
                baseline: median([d[i] if math.isfinite(d[i]) else math.inf for i in of])
                for baseline, d in distances.items()
                if not baseline.name.startswith("model") and of
            }
            best = min(medians, key=lambda baseline: medians[baseline], default=None)
            if of and best:
                found.append(
                    {
                        "name": name,
                        "count": len(of),
                        "p50_m": percentile(finite(model[i] for i in of), 50),
                        "rmse_m": rms(finite(model[i] for i in of)),
                        "best_baseline": best.name,
                        "best_baseline_p50_m": medians[best],
                        "best_baseline_rmse_m": rms(finite(distances[best][i] for i in of)),
                        "posterior_rows": limit["rows"],
                        "rmse_excess": limit["rmse_excess"],
                        "nats_below": limit["nats_below"],
                        **coverages([content[i] for i in of]),
                    }
                )
        return found

    times, gdop = comparison.num_arrival_times, comparison.gdop
    on_common = {name.name: statistics([values[i] for i in common]) for name, values in distances.items()}
    absent = {name.name: None for name in ESTIMATORS if name not in distances}
    mine = on_common["model"]
    huber = on_common.get("huber_gauss_newton", {})
    limits = bounds(common)
    sure = sorted(
        (i for i in rows if math.isfinite(model[i]) and math.isfinite(predicted_m[i])), key=lambda i: predicted_m[i]
    )
    sizes = [len(sure) // 5 + (i < len(sure) % 5) for i in range(5)]
    bins = [sure[sum(sizes[:i]) : sum(sizes[: i + 1])] for i in range(5)]
    kept = {share: round(share * len(sure)) for share in (1, 0.99, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)}
    return {
        "rows": len(rows),
        "estimators": {
            name.name: {
                **statistics(finite(values[i] for i in rows)),
                "rows_without_fix": sum(not math.isfinite(values[i]) for i in rows),
            }
            for name, values in distances.items()
        }
        | absent,
        "common_rows": len(common),
        "on_common_rows": on_common | absent,
        **bounds(rows),
        "ratios": {
            "p50_over_crlb_p50": over(mine["p50_m"], limits["crlb_p50_m"]),
            "rmse_over_crlb_rms": over(mine["rmse_m"], limits["crlb_rms_m"]),
            "p50_over_mixture_crlb_p50": over(mine["p50_m"], limits["mixture_crlb_p50_m"]),
            "rmse_over_mixture_crlb_rms": over(mine["rmse_m"], limits["mixture_crlb_rms_m"]),
            **{
                f"{name}_over_huber": over(mine[f"{name}_m"], huber.get(f"{name}_m")) for name in ("p50", "p95", "rmse")
            },
        },
        "exact_posterior": defined_posterior(comparison, rows),
        "calibration": coverages([content[i] for i in rows]),
        "by_arrival_times": groups(
            {
                "fewer than 3": lambda i: times[i] < 3,
                **{str(number): lambda i, number=number: times[i] == number for number in (3, 4, 5, 6)},
                "7 and more": lambda i: times[i] >= 7,
            }
        ),
        "by_gdop": groups(
            {
                "below 2": lambda i: gdop[i] < 2,
                "2 to 5": lambda i: 2 <= gdop[i] < 5,
                "5 to 10": lambda i: 5 <= gdop[i] < 10,
                "10 and more": lambda i: gdop[i] >= 10,
                "none": lambda i: math.isnan(gdop[i]),
            }
        ),
        "by_hull": groups(
            {"inside": lambda i: comparison.inside_hull[i], "outside": lambda i: not comparison.inside_hull[i]}
        ),
        "by_predicted_rms": [
            {"low_m": predicted_m[some[0]], "high_m": predicted_m[some[-1]], **part(some)} for some in bins if some
        ],
        "selective_risk": [
            {"retained": share, "count": n, "rmse_m": rms([model[i] for i in sure[:n]])}
            for share, n in kept.items()
            if n
        ],
    }


def leaves(value: Any, name: str = "") -> dict[str, float | str | None]:
    """The numbers of a nested document by their paths."""
    if isinstance(value, dict):
        parts = [leaves(each, f"{name}/{key}") for key, each in value.items()]
    elif isinstance(value, list):
        parts = [leaves(each, f"{name}/{i}") for i, each in enumerate(value)]
    else:
        return {name: value}
    return {path: leaf for part in parts for path, leaf in part.items()}


def nearly(numbers: dict[str, float | str | None]) -> dict[str, Any]:
    """The same, for a comparison that forgives rounding."""
    return {
        path: pytest.approx(number, rel=1e-9) if isinstance(number, int | float) else number
        for path, number in numbers.items()
    }


@pytest.mark.parametrize("rows", [60, 7, 1, 0])
def test_every_number_of_a_summary_is_what_its_name_says(rows: int) -> None:
    comparison = cut(some_comparison(), slice(60 - rows, 60))
    summary = comparison.summary().document()
    assert summary["max_gdop"] == 4.5
    assert summary.keys() == {"max_gdop", *(subset.value for subset in Subset)}
    for subset in Subset:
        assert leaves(summary[subset]) == nearly(leaves(defined_summary(comparison, subset)))
        if rows == 60:
            assert None not in leaves(summary[subset]).values()


def test_every_number_of_a_summary_without_arrival_times_is_what_its_name_says() -> None:
    whole = some_comparison()
    by_level = replace(whole, distance_m=whole.distance_m | dict.fromkeys(BY_TIME))
    for subset in Subset:
        summary = by_level.summary().document()[subset]
        assert leaves(summary) == nearly(leaves(defined_summary(by_level, subset)))
        assert [name for name, statistics in summary["estimators"].items() if statistics is None] == [
            name.name for name in BY_TIME
        ]


def test_nothing_is_a_multiple_of_no_error(handmade: Comparison) -> None:
    exact = replace(handmade, distance_m=handmade.distance_m | {HUBER_GAUSS_NEWTON: np.zeros(5)})
    ratios = exact.summary().document()["all"]["ratios"]
    assert [ratios[f"{name}_over_huber"] for name in ("p50", "p95", "rmse")] == [None] * 3
    assert ratios["rmse_over_crlb_rms"] is not None
    perfect = replace(handmade, reference=replace(handmade.reference, distance_m=np.zeros(5)))
    assert perfect.summary().document()["all"]["exact_posterior"]["rmse_excess"] is None


def test_a_comparison_holds_what_its_rows_say(default_batch: Samples) -> None:
    test, train = default_batch.take(slice(0, 40)), default_batch.take(slice(40, 400))
    rng = np.random.default_rng(2)
    frame = NORTH_WEST_ITALY.frame
    truth_en_m = frame.enu_m(test.tx_lat, test.tx_lon, 2.0)[:, :2]
    off_m, root = rng.normal(0, 300, (40, 2)), rng.normal(0, 100, (40, 2, 2))
    covariance_m2 = root @ root.transpose(0, 2, 1)
    covariance_m2[0], covariance_m2[1], covariance_m2[2] = 0.0, -np.eye(2), np.nan
    predicted = gaussian(truth_en_m + off_m, covariance_m2)
    limit = float(np.sort(test.gdop[np.isfinite(test.gdop)])[20])  # the GDOP of a row
    found = compare(spec_of(Preset.default), test, train, predicted, limit)
    np.testing.assert_allclose(found.truth_en_m, truth_en_m)
    model_m, centroid_m = (found.distance_m[name] for name in (MODEL, POWER_WEIGHTED_CENTROID))
    assert model_m is not None
    assert centroid_m is not None
    # Haversine on the mean sphere against the ellipsoid's metres.
    np.testing.assert_allclose(model_m[3:], np.hypot(*off_m.T)[3:], rtol=0.01)
    assert np.isnan(model_m[:3]).all()
    centroid_en_m = power_weighted_centroid(NORTH_WEST_ITALY, test).en_m
    np.testing.assert_allclose(centroid_m, np.hypot(*(centroid_en_m - truth_en_m).T), rtol=0.01)
    np.testing.assert_array_equal(found.content, predicted.content_at(truth_en_m))
    assert np.isnan(found.content[:3]).all()
    np.testing.assert_allclose(found.predicted_rms_m[3:], np.sqrt(np.trace(covariance_m2[3:], axis1=1, axis2=2)))
    assert np.isnan(found.predicted_rms_m[:3]).all()
    np.testing.assert_array_equal(found.crlb_m, test.crlb_m)
    np.testing.assert_array_equal(found.num_arrival_times, test.toa_present.sum(1))
    hull = Delaunay(NORTH_WEST_ITALY.site_enu_m[:, :2])
    np.testing.assert_array_equal(found.inside_hull, hull.find_simplex(truth_en_m) >= 0)
    assert 0 < found.inside_hull.sum() < 40
    # At the limit geometry is no longer good.
    assert found.good_geometry.tolist() == [bool(gdop < limit) for gdop in test.gdop]
    assert found.good_geometry.sum() == 20
    assert found.max_gdop == limit


def test_each_rival_is_the_solver_of_its_name(default_batch: Samples) -> None:
    few, others, scenario = default_batch.take(slice(0, 60)), default_batch.take(slice(60, 4096)), Scenario()
    two = MixturePositions.of_components(
        np.log(np.full((60, 2), 0.5)),
        np.random.default_rng(0).normal(0, 100e3, (60, 2, 2)),
        np.broadcast_to(np.eye(2), (60, 2, 2, 2)) * [[[1.0]], [[2.0]]],
        np.full((60, 2), 4.0),
    )
    found = compare(spec_of(Preset.default), few, others, two, 5.0)
    network, ground = NORTH_WEST_ITALY, Geometry(NORTH_WEST_ITALY, 2.0)
    positions: dict[Estimator, Positions] = {
        MODEL: two,
        MODEL_MODE: Positions.of_points(two.component_en_m[:, 0]),  # the narrower one
        STRONGEST_RECEIVER: strongest_receiver(network, few),
        POWER_WEIGHTED_CENTROID: power_weighted_centroid(network, few),
        NEAREST_FINGERPRINTS: nearest_fingerprints(network, few, others),
        CHAN: chan(ground, few),
        GAUSS_NEWTON: gauss_newton(ground, few, Loss.linear),
        HUBER_GAUSS_NEWTON: gauss_newton(ground, few, Loss.huber),
        MIXTURE_ML: mixture_maximum_likelihood(ground, few, scenario.excess_delay),
    }
    assert set(positions) == set(ESTIMATORS)
    for name, position in positions.items():
        distance_m = found.distance_m[name]
        assert distance_m is not None
        np.testing.assert_allclose(distance_m, np.hypot(*(position.en_m - found.truth_en_m).T), rtol=0.01)
    bound_m = mixture_crlb_m(ground, found.truth_en_m, few, scenario.excess_delay)
    np.testing.assert_allclose(found.mixture_crlb_m, bound_m)


@pytest.mark.parametrize("preset", [Preset.default, Preset.rss])
def test_the_reference_is_the_exact_posterior(
    preset: Preset, default_batch: Samples, rss_batch: Samples, by_time: Comparison, by_level: Comparison
) -> None:
    comparison, batch = (by_time, default_batch) if preset is Preset.default else (by_level, rss_batch)
    rows = np.flatnonzero(comparison.reference.rows)
    assert len(rows) == 300
    test = batch.take(batch.split == Split.test).take(rows)
    truth_en_m = comparison.truth_en_m[rows]
    found = exact_posterior(Geometry(NORTH_WEST_ITALY, 2.0), test, PRESETS[preset], truth_en_m)
    distance_m = np.hypot(*(found.en_m - truth_en_m).T)
    np.testing.assert_allclose(comparison.reference.distance_m[rows], distance_m, rtol=0.01)
    np.testing.assert_allclose(comparison.reference.log_density[rows], found.log_density_at)
    np.testing.assert_allclose(comparison.reference.content[rows], found.content_at)


def test_the_reference_rows_are_chosen_by_their_ids(default_batch: Samples, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same samples in any order, and of a part of them those that are left."""
    monkeypatch.setattr(triangulation_pipeline.evaluation.reference, "REFERENCE_LINKS", 100 * 7)
    rows = reference_rows(default_batch)
    assert (np.diff(rows) > 0).all()
    assert len(rows) == 100
    tails = [bytes(sample_id[10:]) for sample_id in default_batch.sample_id]
    chosen = {tails[row] for row in rows}
    assert chosen == set(sorted(tails)[:100])
    order = np.random.default_rng(0).permutation(len(default_batch))
    assert {tails[order[row]] for row in reference_rows(default_batch.take(order))} == chosen
    few = default_batch.take(slice(0, 60))
    np.testing.assert_array_equal(reference_rows(few), np.arange(60))
    # Other rows have no reference.
    some = default_batch.take(slice(0, 120))
    monkeypatch.setattr(triangulation_pipeline.evaluation.reference, "REFERENCE_LINKS", 7 * 7)
    found = compare(spec_of(Preset.default), some, default_batch, anything(120), 5.0)
    np.testing.assert_array_equal(np.flatnonzero(found.reference.rows), reference_rows(some))


def test_a_better_density_is_nearer_to_the_reference(default_batch: Samples) -> None:
    """A model whose answer is the exact posterior's mean and covariance lacks the shape alone."""
    test, train = default_batch.take(slice(0, 80)), default_batch.take(slice(80, 400))
    exact = exact_posterior(Geometry(NORTH_WEST_ITALY, 2.0), test, Scenario(), np.zeros((80, 2)))
    light = gaussian(exact.en_m, exact.covariance_m2)
    heavy = MixturePositions.of_components(
        np.zeros((80, 1)), exact.en_m[:, None], exact.covariance_m2[:, None] / 2, np.full((80, 1), 4.0)
    )
    found = [
        compare(spec_of(Preset.default), test, train, predicted, 5.0).summary().all.exact_posterior
        for predicted in (light, heavy)
    ]
    assert all(part is not None and abs(part.rmse_excess) < 1e-12 for part in found)
    assert 0 < found[1].nats_below < found[0].nats_below < 1


def test_default_ranks_the_estimators(by_time: Comparison) -> None:
    summary = by_time.summary().document()
    good = summary["good_geometry"]
    p95 = {name: values["p95_m"] for name, values in good["on_common_rows"].items() if values}
    ranked = ("mixture_ml", "huber_gauss_newton", "gauss_newton", "nearest_fingerprints", "power_weighted_centroid")
    assert [p95[name] for name in ranked] == sorted(p95[name] for name in ranked)
    assert p95["chan"] == pytest.approx(p95["gauss_newton"], rel=0.1)
    assert p95["power_weighted_centroid"] < p95["strongest_receiver"]
    limit = good["exact_posterior"]
    assert limit["rows"] == (by_time.reference.rows & by_time.good_geometry).sum()
    assert limit["posterior"]["rmse_m"] < good["estimators"]["mixture_ml"]["rmse_m"]
    for name, share in COVERAGE_LEVELS.items():
        assert limit["posterior"][name] == pytest.approx(share, abs=0.09)
    assert good["rows"] > 500
    assert 0.98 * good["rows"] <= good["common_rows"] <= good["rows"]
    # The published medians of this scenario: 21 to 27 m; the bound: 33 m rms, 24 m median.
    assert 17 < limit["posterior"]["p50_m"] < 26
    assert 20 < good["estimators"]["huber_gauss_newton"]["p50_m"] < 31
    assert 28 < good["crlb_rms_m"] < 39
    assert good["crlb_p50_m"] < good["mixture_crlb_p50_m"] < 1.3 * good["crlb_p50_m"]


def test_an_honest_model_is_calibrated(by_time: Comparison) -> None:
    everything = by_time.summary().document()["all"]
    # Haversine on the mean sphere against the ellipsoid's metres: within 0.5 %.
    assert everything["estimators"]["model"]["rmse_m"] == pytest.approx(np.sqrt(2) * SIGMA_M, rel=0.08)
    for name, share in COVERAGE_LEVELS.items():
        assert everything["calibration"][name] == pytest.approx(share, abs=0.05)
    assert everything["by_predicted_rms"][0]["predicted_rms_m"] == pytest.approx(np.sqrt(2) * SIGMA_M)


def test_levels_alone_have_no_solver_by_time(by_level: Comparison) -> None:
    summary = by_level.summary().document()
    everything = summary["all"]
    for name in BY_TIME:
        assert everything["estimators"][name.name] is None
        assert everything["on_common_rows"][name.name] is None
    limit, nearest = everything["exact_posterior"]["posterior"], everything["estimators"]["nearest_fingerprints"]
    assert 25_000 < limit["rmse_m"] < 1.05 * nearest["rmse_m"] < 40_000
    assert limit["coverage_90"] == pytest.approx(0.9, abs=0.05)
    assert [group["name"] for group in everything["by_arrival_times"]] == ["fewer than 3"]
    assert everything["mixture_crlb_rms_m"] is None
    assert everything["ratios"]["p95_over_huber"] is None
    good = summary["good_geometry"]
    assert good["rows"] == good["common_rows"] == 0
    assert good["estimators"]["model"]["rmse_m"] is None
    assert set(good["calibration"].values()) == {None}
    assert good["selective_risk"] == good["by_arrival_times"] == good["by_gdop"] == good["by_predicted_rms"] == []


def test_summaries_are_json_without_nan(by_time: Comparison, by_level: Comparison, handmade: Comparison) -> None:
    nothing = cut(handmade, slice(0, 0))
    for comparison in (by_time, by_level, handmade, nothing, cut(handmade, slice(4, 5))):
        text = json.dumps(comparison.summary().document(), allow_nan=False)
        assert json.loads(text) == comparison.summary().document()
    assert nothing.summary().document()["all"]["rows"] == 0


def test_random_layouts_are_compared_each_in_its_own_frame() -> None:
    """As if each had been compared alone, and put in the place of its rows."""
    spec = DatasetSpec(None, Scenario(), 3 * ROWS_PER_LAYOUT, 1, Layouts.random)  # one of them with one clock
    whole = simulate(spec)
    picked = np.random.default_rng(0).permutation(len(whole))[:90]
    test = whole.take(picked)
    exact = MixturePositions.concatenate([anything(1)] * 90)
    for layout, rows in spec.by_layout(test):
        part = test.take(rows)
        exact.en_m[rows] = part.tx_en_m(layout.network.frame) + np.array([30.0, 40.0])
        exact.component_en_m[rows, 0] = exact.en_m[rows]
    found = compare(spec, test, test, exact, 5.0)
    np.testing.assert_allclose(found.model_m, 50.0, rtol=0.01)
    np.testing.assert_array_equal(errors_m(spec, test, exact), found.model_m)
    np.testing.assert_array_equal(found.crlb_m, test.crlb_m)
    assert found.distance_m[NEAREST_FINGERPRINTS] is None
    assert len(list(spec.by_layout(test))) == 3
    for layout, rows in spec.by_layout(test):
        few = test.take(rows).of_sites(len(layout.network.sites))
        own = DatasetSpec(layout.network, layout.scenario, 1, 0)
        alone = compare(own, few, few, exact.take(rows), 5.0)
        for name in BY_TIME:
            mine, other = found.distance_m[name], alone.distance_m[name]
            assert mine is not None
            # In a layout without three clocks there is none.
            np.testing.assert_array_equal(mine[rows], np.full(len(rows), np.nan) if other is None else other)
        for column in ("truth_en_m", "content", "mixture_crlb_m", "gdop", "num_arrival_times", "inside_hull"):
            np.testing.assert_array_equal(getattr(found, column)[rows], getattr(alone, column))
        np.testing.assert_allclose(found.reference.log_density[rows], alone.reference.log_density, rtol=1e-6)


def test_known_gains_are_taken_off_for_all(default_batch: Samples) -> None:
    """A site that is known to read 20 dB too high costs nothing; unknown, it attracts who goes by levels."""
    loud = NORTH_WEST_ITALY.sites[0].model_copy(update={"gain_offset_db": 20.0})
    known = NORTH_WEST_ITALY.model_copy(update={"sites": (loud, *NORTH_WEST_ITALY.sites[1:])})
    few, others = default_batch.take(slice(0, 40)), default_batch.take(slice(40, 2000))

    def louder(samples: Samples) -> Samples:
        return replace(samples, power_dbm=samples.power_dbm + np.float32([20.0, 0, 0, 0, 0, 0, 0]))

    plain = compare(spec_of(Preset.default), few, others, anything(40), 5.0)
    calibrated = compare(DatasetSpec(known, Scenario(), 4096, 3), louder(few), louder(others), anything(40), 5.0)
    for name in ESTIMATORS:
        before, after = plain.distance_m[name], calibrated.distance_m[name]
        assert before is not None
        assert after is not None
        np.testing.assert_allclose(after, before, rtol=1e-3, atol=1.0)
    np.testing.assert_allclose(calibrated.reference.log_density, plain.reference.log_density, rtol=1e-3)
    unknown = compare(spec_of(Preset.default), louder(few), others, anything(40), 5.0)
    assert np.median(unknown.distance_m[STRONGEST_RECEIVER]) != np.median(plain.distance_m[STRONGEST_RECEIVER])


@pytest.mark.parametrize(("timed", "by_time"), [(2, False), (3, True)])
def test_a_network_of_fewer_than_three_clocks_is_left_with_levels(timed: int, by_time: bool) -> None:
    clocks = [Timing.gps] * timed + [Timing.none] * (7 - timed)
    sites = tuple(
        site.model_copy(update={"timing": timing}) for site, timing in zip(NORTH_WEST_ITALY.sites, clocks, strict=True)
    )
    spec = DatasetSpec(ReceiverNetwork(name="few clocks", sites=sites), Scenario(), 40, seed=0)
    few = simulate(spec)
    comparison = compare(spec, few, few, anything(40), 5.0)
    found = {name for name, distance_m in comparison.distance_m.items() if distance_m is not None}
    assert found == set(ESTIMATORS) - (set() if by_time else set(BY_TIME))
    assert comparison.has_arrival_times == by_time
    assert comparison.reference.rows.all()


def test_a_scenario_of_levels_alone_has_no_solver_by_time_in_a_network_with_clocks(rss_batch: Samples) -> None:
    few = rss_batch.take(slice(0, 4))
    comparison = compare(spec_of(Preset.rss), few, few, anything(4), 5.0)
    assert NORTH_WEST_ITALY.has_timing.sum() >= 3
    assert not comparison.has_arrival_times


def test_a_model_without_a_number_has_no_fix(default_batch: Samples) -> None:
    few = default_batch.take(slice(0, 4))
    predicted = gaussian(
        np.array([[np.nan, 0.0], [np.inf, 0.0], [1e9, 0.0], [0.0, 0.0]]), np.broadcast_to(np.eye(2), (4, 2, 2))
    )
    comparison = compare(spec_of(Preset.default), few, default_batch.take(slice(4, 200)), predicted, 5.0)
    summary = comparison.summary().document()
    assert summary["all"]["estimators"]["model"]["rows_without_fix"] == 3
    assert summary["all"]["common_rows"] == 1
    json.dumps(summary, allow_nan=False)
    assert comparison.rows(Subset.all).all()


def test_bad_input_is_named(default_batch: Samples) -> None:
    few, spec = default_batch.take(slice(0, 4)), spec_of(Preset.default)
    with pytest.raises(ValueError, match="predicted must have one row per test sample, 4, it has 3"):
        compare(spec, few, few, anything(3), 5.0)
    five = DatasetSpec(random_network(5, 0), Scenario(), 10, seed=0)
    with pytest.raises(ValueError, match="test has 7 receivers, the dataset has 5"):
        compare(five, few, few, anything(4), 5.0)
    with pytest.raises(ValueError, match="train has 5 receivers, the dataset has 7"):
        compare(spec, few, simulate(five), anything(4), 5.0)
    with pytest.raises(ValueError, match="test has no rows; simulate more samples"):
        compare(spec, few.take(slice(0, 0)), few, anything(0), 5.0)
    for limit in (0.0, -1.0, np.nan):
        with pytest.raises(ValueError, match=f"max_gdop must be above 0, got {limit}"):
            compare(spec, few, few, anything(4), limit)


def test_needs_no_pytorch_and_no_pyplot() -> None:
    code = (
        "import sys, triangulation_pipeline.evaluation.comparison, triangulation_pipeline.evaluation.verdict\n"
        "import triangulation_pipeline.plots.dataset, triangulation_pipeline.plots.evaluation\n"
        "import triangulation_pipeline.plots.training\n"
        "print([name for name in ('torch', 'matplotlib.pyplot', 'dagster', 'sqlalchemy') if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
