from dataclasses import replace

import numpy as np
import pytest

from triangulation_pipeline.plots.training import training_curves
from triangulation_pipeline.training.metrics import EpochMetrics
from triangulation_pipeline_tests.plots.pictures import curves, drawn


def history(epochs: int) -> list[EpochMetrics]:
    return [
        EpochMetrics(
            epoch=epoch,
            train_loss=6 + 1 / epoch,
            val_loss=6 + abs(epoch - 30) / 100,
            train_rmse_m=700 / epoch,
            val_rmse_m=300 / epoch,
            val_rmse_good_geom_m=None if epoch == 2 else 100 / epoch,
            val_distance_p50_m=25.0,
            val_distance_p68_m=35.0,
            val_distance_p95_m=95.0,
            val_nees=2.0,
            val_coverage_68=0.68,
            val_coverage_95=0.95,
            learning_rate=3e-3 / epoch,
            gradient_norm=1.0,
            epoch_seconds=1.0,
        )
        for epoch in range(1, epochs + 1)
    ]


def test_training_curves() -> None:
    words = drawn(training_curves(history(40), limit_m=33.2, limit_p50_m=21.4))
    assert "limit, good geometry: 33 m rms" in words
    assert "limit of the median: 21 m" in words
    assert "lowest validation loss in epoch 30" in words
    assert "limit, good geometry: 33 m rms" in words
    assert "limit" not in drawn(training_curves(history(3)))
    assert "1 epoch:" in drawn(training_curves(history(1), limit_m=33.2))
    assert "no epoch yet" in drawn(training_curves([]))


def test_training_curves_are_the_metrics_by_epoch() -> None:
    given = history(40)
    loss, error, rate = training_curves(given, limit_m=33.2, limit_p50_m=21.4).axes
    expected = {
        "training": (loss, "train_loss"),
        "validation": (loss, "val_loss"),
        "RMSE, training": (error, "train_rmse_m"),
        "RMSE, validation": (error, "val_rmse_m"),
        "RMSE, validation, good geometry": (error, "val_rmse_good_geom_m"),
        "median, validation": (error, "val_distance_p50_m"),
        "learning rate": (rate, "learning_rate"),
    }
    for label, (axes, name) in expected.items():
        epochs, values = curves(axes)[label]
        np.testing.assert_array_equal(epochs, range(1, 41))
        # Where an epoch has no such number the curve has a gap.
        np.testing.assert_array_equal(
            values, [np.nan if value is None else value for value in (getattr(each, name) for each in given)]
        )
    for label, height_m in (("limit, good geometry: 33 m rms", 33.2), ("limit of the median: 21 m", 21.4)):
        assert curves(error)[label][1].tolist() == [height_m, height_m]
    for axes in (loss, error, rate):
        (dotted,) = (line for line in axes.lines if line.get_linestyle() == ":")
        assert dotted.get_xdata() == [30, 30]
    assert error.get_yscale() == "log"
    assert rate.get_ylim() == pytest.approx((0, 1.1 * 3e-3))
    assert loss.get_title() == "Training, 40 epochs: lowest validation loss in epoch 30 (dotted)"


@pytest.mark.parametrize(
    ("limit_m", "words"),
    [
        (8.27, "8.3 m"),
        (5.0, "5 m"),
        (10.0, "10 m"),
        (24.4, "24 m"),
        (999.0, "999 m"),
        (1000.0, "1 km"),
        (1530.0, "1.5 km"),
        (120e3, "120 km"),
    ],
)
def test_metres_have_three_digits_at_most(limit_m: float, words: str) -> None:
    error = training_curves(history(3), limit_m=limit_m).axes[1]
    assert f"limit, good geometry: {words} rms" in curves(error)


def test_metrics_that_do_not_exist_are_left_out() -> None:
    without = [replace(metrics, val_rmse_good_geom_m=None) for metrics in history(5)]
    assert "good geometry" not in drawn(training_curves(without))
