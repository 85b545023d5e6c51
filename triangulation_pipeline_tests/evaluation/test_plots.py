import io
from collections.abc import Callable

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from triangulation_pipeline.evaluation.comparison import Comparison, Estimator, Subset
from triangulation_pipeline.evaluation.plots import (
    calibration_curve,
    dataset_histograms,
    dataset_map,
    error_cdf,
    error_map,
    png,
    training_curves,
)
from triangulation_pipeline.network import NORTH_WEST_ITALY
from triangulation_pipeline.samples import SampleBatch
from triangulation_pipeline_tests.evaluation.conftest import cut

LARGEST = 50 * 1024


def history(epochs: int) -> list[dict[str, float | int | None]]:
    return [
        {
            "epoch": epoch,
            "train_loss": 6 + 1 / epoch,
            "val_loss": 6 + abs(epoch - 30) / 100,
            "train_rmse_m": 700 / epoch,
            "val_rmse_m": 300 / epoch,
            "val_rmse_good_geom_m": None if epoch == 2 else 100 / epoch,
            "val_distance_p50_m": 25.0,
            "learning_rate": 3e-3 / epoch,
        }
        for epoch in range(1, epochs + 1)
    ]


def drawn(figure: Figure) -> str:
    """All words of a picture that is a PNG of the promised size."""
    content = png(figure)
    with Image.open(io.BytesIO(content)) as image:
        assert image.format == "PNG"
        assert 700 <= image.width <= 800
    assert len(content) < LARGEST
    words = [text.get_text() for text in figure.texts]
    if figure.get_suptitle():
        words.append(figure.get_suptitle())
    for axes in figure.axes:
        words += [axes.get_title(), axes.get_xlabel(), axes.get_ylabel(), *(text.get_text() for text in axes.texts)]
        words += axes.get_legend_handles_labels()[1]
    return "\n".join(words)


def test_error_cdf(by_time: Comparison, by_level: Comparison) -> None:
    words = drawn(error_cdf(by_time))
    rows = int(by_time.common_rows(Subset.good_geometry).sum())
    assert f"{rows:,} test rows with GDOP < 5" in words
    for label in ("model (", "Huber Gauss-Newton (", "likelihood, knows the truth (", "Cramér-Rao", "off scale"):
        assert label in words
    words = drawn(error_cdf(by_level, Subset.all))
    assert "posterior mean" in words
    assert "Gauss-Newton" not in words
    assert "Cramér-Rao" not in words


def test_error_cdf_curves_are_the_distances(by_time: Comparison) -> None:
    axes = error_cdf(by_time, Subset.all).axes[0]
    line = next(line for line in axes.lines if str(line.get_label()).startswith("model ("))
    rows = by_time.common_rows(Subset.all)
    distance = by_time.distance_m[Estimator.model]
    assert distance is not None
    np.testing.assert_allclose(line.get_xdata()[1:], np.sort(distance[rows]))
    np.testing.assert_allclose(line.get_ydata(), np.arange(rows.sum() + 1) / rows.sum())


def test_calibration_curve(by_time: Comparison) -> None:
    figure = calibration_curve(by_time)
    assert "GDOP < 5" in drawn(figure)
    line = next(line for line in figure.axes[0].lines if line.get_label() == "model")
    nees = by_time.nees[by_time.good_geometry]
    assert line.get_ydata()[95] == pytest.approx(np.mean(nees <= 5.991464547))
    assert f"{100 * np.mean(nees <= 5.991464547):.1f} %" in figure.axes[1].get_title()


def test_maps(by_time: Comparison, default_batch: SampleBatch, rss_batch: SampleBatch) -> None:
    words = drawn(error_map(NORTH_WEST_ITALY, by_time))
    assert all(site.name in words for site in NORTH_WEST_ITALY.sites)
    assert f"{len(by_time.nees):,} test transmitters" in words
    assert "4,000 of 4,096 transmitters" in drawn(dataset_map(NORTH_WEST_ITALY, default_batch))
    assert "east, km" in drawn(dataset_map(NORTH_WEST_ITALY, rss_batch))


def test_unlocated_rows_are_shown_as_such(handmade: Comparison) -> None:
    assert "no position" not in drawn(error_map(NORTH_WEST_ITALY, handmade))
    model = handmade.distance_m[Estimator.model]
    assert model is not None
    model[:] = np.nan
    assert "no position" in drawn(error_map(NORTH_WEST_ITALY, handmade))


def test_dataset_histograms(default_batch: SampleBatch, rss_batch: SampleBatch) -> None:
    assert f"{len(default_batch):,} transmissions" in drawn(dataset_histograms(default_batch))
    assert "three arrival times" in drawn(dataset_histograms(rss_batch))


def test_training_curves() -> None:
    words = drawn(training_curves(history(40), limit_m=33.2))
    assert "lowest validation loss in epoch 30" in words
    assert "limit, good geometry: 33 m rms" in words
    assert "limit" not in drawn(training_curves(history(3)))
    assert "1 epoch:" in drawn(training_curves(history(1), limit_m=33.2))
    assert "no epoch yet" in drawn(training_curves([]))


def test_metrics_that_do_not_exist_are_left_out() -> None:
    without = [{**epoch, "val_rmse_good_geom_m": None} for epoch in history(5)]
    assert "good geometry" not in drawn(training_curves(without))


@pytest.mark.parametrize("draw", [error_cdf, calibration_curve])
def test_no_row_of_good_geometry_is_said(draw: Callable[[Comparison], Figure], by_level: Comparison) -> None:
    assert "no test row with GDOP < 5" in drawn(draw(by_level))


@pytest.mark.parametrize("rows", [slice(0, 0), slice(0, 1)])
def test_tiny_subsets(rows: slice, by_time: Comparison, by_level: Comparison, default_batch: SampleBatch) -> None:
    for comparison in (cut(by_time, rows), cut(by_level, rows)):
        for subset in Subset:
            drawn(error_cdf(comparison, subset))
            drawn(calibration_curve(comparison, subset))
        drawn(error_map(NORTH_WEST_ITALY, comparison))
    drawn(dataset_map(NORTH_WEST_ITALY, default_batch.take(rows)))
    drawn(dataset_histograms(default_batch.take(rows)))


def test_same_data_same_bytes(handmade: Comparison) -> None:
    assert png(error_map(NORTH_WEST_ITALY, handmade)) == png(error_map(NORTH_WEST_ITALY, handmade))
