"""The picture of a training."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from triangulation_pipeline.plots.style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    blank_figure,
    counted,
    metre_axis,
    metres,
    say_empty,
    set_title,
    tidy,
)
from triangulation_pipeline.training.metrics import EpochMetrics

Float = NDArray[np.float64]


def training_curves(
    history: Sequence[EpochMetrics],
    limit_m: float | None = None,
    limit_p50_m: float | None = None,
) -> Figure:
    """Loss, error and learning rate by epoch. ``limit_m`` is the rms Cramér-Rao bound of the validation samples with
    good geometry, ``limit_p50_m`` the median error that the bounds of all validation samples leave possible, metres."""
    figure = blank_figure(6.4)
    loss, error, rate = figure.subplots(3, 1, sharex=True, height_ratios=(1, 1.7, 0.6))
    if not history:
        for axes in (error, rate):
            axes.remove()
        return say_empty(figure, loss, "no epoch yet")
    epoch = _column(history, "epoch")
    marker = "o" if len(history) < 12 else ""

    def draw(axes: Axes, name: str, label: str, colour: str, style: str = "-", width: float = 1.6) -> None:
        values = _column(history, name)
        if np.isfinite(values).any():
            axes.plot(epoch, values, style, marker=marker, ms=4, color=colour, lw=width, label=label)

    draw(loss, "train_loss", "training", GREY)
    draw(loss, "val_loss", "validation", BLUE, width=2.2)
    loss.set_ylabel("loss")

    draw(error, "train_rmse_m", "RMSE, training", GREY)
    draw(error, "val_rmse_m", "RMSE, validation", ORANGE)
    draw(error, "val_rmse_good_geom_m", "RMSE, validation, good geometry", BLUE, width=2.4)
    draw(error, "val_distance_p50_m", "median, validation", GREEN)
    if limit_m is not None:
        error.axhline(limit_m, color=BLUE, ls="--", lw=1.4, label=f"limit, good geometry: {metres(limit_m)} rms")
    if limit_p50_m is not None:
        error.axhline(limit_p50_m, color=GREEN, ls="--", lw=1.4, label=f"limit of the median: {metres(limit_p50_m)}")
    error.set_yscale("log")
    error.set_ylabel("position error")
    metre_axis(error, "y")

    draw(rate, "learning_rate", "learning rate", PURPLE)
    rate.set_ylabel("learning rate")
    rate.set_ylim(0, 1.1 * max(metrics.learning_rate for metrics in history))
    rate.set_xlabel("epoch")
    rate.xaxis.set_major_locator(MaxNLocator(integer=True))

    best = min(history, key=lambda metrics: metrics.val_loss).epoch
    for axes in (loss, error, rate):
        axes.axvline(best, color=BLACK, lw=0.8, ls=":", zorder=0)
    set_title(loss, f"Training, {counted(len(history), 'epoch')}: lowest validation loss in epoch {best} (dotted)")
    loss.legend(fontsize=8.5, frameon=False, loc="best", ncols=2)
    error.legend(fontsize=8.5, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
    for axes in (loss, error, rate):
        tidy(axes)
    return figure


def _column(history: Sequence[EpochMetrics], name: str) -> Float:
    """A metric by epoch; NaN, a gap in the curve, if an epoch has none."""
    values = [getattr(metrics, name) for metrics in history]
    return np.array([np.nan if value is None else value for value in values], np.float64)
