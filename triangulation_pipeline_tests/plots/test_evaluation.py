from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.figure import Figure

from triangulation_pipeline.evaluation.comparison import Comparison
from triangulation_pipeline.evaluation.estimators import (
    CHAN,
    GAUSS_NEWTON,
    HUBER_GAUSS_NEWTON,
    MIXTURE_ML,
    MODEL,
    MODEL_MODE,
    NEAREST_FINGERPRINTS,
    POWER_WEIGHTED_CENTROID,
    STRONGEST_RECEIVER,
)
from triangulation_pipeline.evaluation.summary import Subset
from triangulation_pipeline.network import NORTH_WEST_ITALY
from triangulation_pipeline.plots.dataset import dataset_histograms, dataset_map
from triangulation_pipeline.plots.evaluation import calibration_curve, error_cdf, error_map
from triangulation_pipeline.samples import Samples
from triangulation_pipeline_tests.evaluation.conftest import cut, some_comparison
from triangulation_pipeline_tests.plots.pictures import curves, drawn


def test_error_cdf(by_time: Comparison, by_level: Comparison) -> None:
    words = drawn(error_cdf(by_time))
    rows = int(by_time.common_rows(Subset.good_geometry).sum())
    assert f"{rows:,} test rows with GDOP < 5" in words
    for label in ("model (", "Huber Gauss-Newton (", "exact posterior, ", "Cramér-Rao", "off scale"):
        assert label in words
    words = drawn(error_cdf(by_level, Subset.all))
    assert "exact posterior" in words
    assert "Gauss-Newton" not in words
    assert "Cramér-Rao" not in words


NAMES = {
    MODEL: "model",
    MIXTURE_ML: "mixture likelihood",
    HUBER_GAUSS_NEWTON: "Huber Gauss-Newton",
    GAUSS_NEWTON: "Gauss-Newton",
    POWER_WEIGHTED_CENTROID: "power-weighted centroid",
    MODEL_MODE: "model, mode",
    CHAN: "Chan 1994",
    NEAREST_FINGERPRINTS: "nearest fingerprints",
    STRONGEST_RECEIVER: "strongest receiver",
}


@pytest.mark.parametrize("subset", list(Subset))
def test_error_cdf_curves_are_the_distances(subset: Subset) -> None:
    comparison = some_comparison()
    axes = error_cdf(comparison, subset).axes[0]
    rows = comparison.common_rows(subset)
    assert 5 < rows.sum() < len(rows)
    found = {label.partition(" (")[0]: points for label, points in curves(axes).items()}
    limit_m = comparison.reference.distance_m[comparison.reference.rows & rows]
    assert 1 < len(limit_m) < rows.sum()
    limit = f"exact posterior, {len(limit_m)} of the rows"
    assert found.keys() == {*NAMES.values(), limit, "Gaussian Cramér-Rao bound"}
    np.testing.assert_allclose(found[limit][0][1:], np.sort(limit_m))
    np.testing.assert_allclose(found[limit][1], np.arange(len(limit_m) + 1) / len(limit_m))
    for name, distance_m in comparison.distance_m.items():
        assert distance_m is not None
        x, y = found[NAMES[name]]
        np.testing.assert_allclose(x[1:], np.sort(distance_m[rows]))
        np.testing.assert_allclose(y, np.arange(rows.sum() + 1) / rows.sum())
        assert x[0] == x[1]
    assert (axes.get_xscale(), axes.get_ylim()) == ("log", (0, 1.01))


def test_error_cdf_names_the_median_and_the_95th_percentile(handmade: Comparison) -> None:
    """Of 10, 20 and 40 metres, and so on: the rows that all have a fix on."""
    axes = error_cdf(handmade).axes[0]
    assert curves(axes).keys() == {
        "model (20 m / 38 m)",
        "exact posterior, 3 of the rows (16 m / 30 m)",
        "Huber Gauss-Newton (40 m / 76 m)",
        "Gauss-Newton (50 m / 86 m)",
        "Gaussian Cramér-Rao bound",
    }
    assert axes.get_title() == "How far off each estimator is: 3 test rows with GDOP < 5"
    assert error_cdf(handmade, Subset.all).axes[0].get_title() == "How far off each estimator is: 4 test rows"
    # From a little below the least of the good ones to twice their largest.
    assert axes.get_xlim() == pytest.approx((0.8 * 10.2, 2 * 89.2), rel=1e-3)


def test_error_cdf_begins_at_half_a_metre_at_the_least(handmade: Comparison) -> None:
    for shrunk, least_m in ((10, 1.02), (1000, 0.5)):
        distance_m = {name: None if d is None else d / shrunk for name, d in handmade.distance_m.items()}
        low, _ = error_cdf(replace(handmade, distance_m=distance_m)).axes[0].get_xlim()
        assert low == pytest.approx(0.8 * least_m, rel=1e-3)


def test_error_cdf_shows_what_the_bound_leaves_possible(handmade: Comparison) -> None:
    """The share of circular Gaussian errors of the bound's rms that lie below a distance, over the rows."""
    axes = error_cdf(handmade).axes[0]
    x, y = curves(axes)["Gaussian Cramér-Rao bound"]
    assert (x[0], x[-1]) == pytest.approx(axes.get_xlim())
    bounds_m = [10.0, 20.0, 40.0]
    np.testing.assert_allclose(y, np.mean([1 - np.exp(-((x / bound) ** 2)) for bound in bounds_m], axis=0))
    np.testing.assert_allclose(np.diff(np.log(x)), np.log(x[-1] / x[0]) / 199)  # smooth on an axis of decades
    by_level = replace(handmade, distance_m=handmade.distance_m | {HUBER_GAUSS_NEWTON: None})
    assert "Gaussian Cramér-Rao bound" not in curves(error_cdf(by_level).axes[0])
    unbound = replace(handmade, crlb_m=np.full(5, np.nan))
    assert "Gaussian Cramér-Rao bound" not in curves(error_cdf(unbound).axes[0])


@pytest.mark.parametrize("subset", list(Subset))
def test_calibration_curve(subset: Subset) -> None:
    comparison = some_comparison()
    figure = calibration_curve(comparison, subset)
    whole, difference = figure.axes
    content = comparison.content[comparison.rows(subset)]
    assert f"{len(content)} test rows" in figure.get_suptitle()
    nominal, observed = curves(whole)["model"]
    np.testing.assert_allclose(nominal, np.arange(100) / 100)
    # A row without a position lies outside of every region.
    np.testing.assert_allclose(observed, [np.mean(content <= level) for level in nominal])
    np.testing.assert_array_equal(curves(whole)["perfect"], ([0, 1], [0, 1]))
    limit_content = comparison.reference.content[comparison.reference.rows & comparison.rows(subset)]
    _, limit = curves(whole)[f"exact posterior, {len(limit_content)} rows"]
    np.testing.assert_allclose(limit, [np.mean(limit_content <= level) for level in nominal])
    line, dots = difference.lines[1:]
    np.testing.assert_allclose(line.get_xdata(), nominal)
    np.testing.assert_allclose(line.get_ydata(), 100 * (observed - nominal))
    levels = np.array([0.5, 0.683, 0.9, 0.95, 0.99])
    held = np.array([np.mean(content <= level) for level in levels])
    np.testing.assert_allclose((dots.get_xdata(), dots.get_ydata()), [levels, 100 * (held - levels)])
    assert f"hold {', '.join(f'{100 * share:.1f}' for share in held)} %" in difference.get_title()


def test_a_place_on_the_edge_lies_inside(handmade: Comparison) -> None:
    """As coverage counts it."""
    _, observed = curves(calibration_curve(replace(handmade, content=np.full(5, 0.5))).axes[0])["model"]
    assert observed.tolist() == [0.0] * 50 + [1.0] * 50


def test_the_band_of_the_calibration_is_that_of_chance(handmade: Comparison) -> None:
    """Of four rows: at 50 %, 1.96 standard errors of a quarter each."""
    whole, difference = (axes.collections[0].get_paths()[0].vertices for axes in calibration_curve(handmade).axes)
    at_half = difference[np.isclose(difference[:, 0], 0.5), 1]
    assert sorted(at_half) == pytest.approx([-49, 49])
    assert sorted(whole[np.isclose(whole[:, 0], 0.5), 1]) == pytest.approx([0.01, 0.99])
    assert (whole[:, 1].min(), whole[:, 1].max()) == (0, 1)


@pytest.mark.parametrize("draw", [error_cdf, calibration_curve])
def test_no_row_of_good_geometry_is_said(draw: Callable[[Comparison], Figure], by_level: Comparison) -> None:
    words = drawn(draw(by_level))
    assert "no test row with GDOP < 5" in words
    assert "0 test rows with GDOP < 5" in words


@pytest.mark.parametrize("rows", [slice(0, 0), slice(0, 1)])
def test_tiny_subsets(rows: slice, by_time: Comparison, by_level: Comparison, default_batch: Samples) -> None:
    for comparison in (cut(by_time, rows), cut(by_level, rows)):
        for subset in Subset:
            drawn(error_cdf(comparison, subset))
            drawn(calibration_curve(comparison, subset))
        drawn(error_map(NORTH_WEST_ITALY, comparison))
    drawn(dataset_map(NORTH_WEST_ITALY, default_batch.take(rows)))
    drawn(dataset_histograms(default_batch.take(rows)))
