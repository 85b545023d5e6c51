"""The picture of a training."""

from collections.abc import Mapping, Sequence

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

Float = NDArray[np.float64]


def training_curves(
    history: Sequence[Mapping[str, float | int | None]],
    limit_m: float | None = None,
    limit_p50_m: float | None = None,
) -> Figure:
    """Loss, error and learning rate by epoch, from a trainer's history; ``limit_m`` is the rms Cramér-Rao bound of the
    validation rows with good geometry, ``limit_p50_m`` what the bounds of all of them leave for the median."""
    figure = blank_figure(6.4)
    loss, error, rate = figure.subplots(3, 1, sharex=True, height_ratios=(1, 1.7, 0.6))
    if not history:
        for axes in (error, rate):
            axes.remove()
        return say_empty(figure, loss, "no epoch yet")
    epoch = _column(history, "epoch")
    marker = "o" if len(history) < 12 else ""

    def draw(axes: Axes, key: str, label: str, colour: str, style: str = "-", width: float = 1.6) -> None:
        values = _column(history, key)
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
    rate.set_ylim(0, 1.1 * max(np.nanmax(_column(history, "learning_rate"), initial=0.0), 1e-9))
    rate.set_xlabel("epoch")
    rate.xaxis.set_major_locator(MaxNLocator(integer=True))

    val_loss = _column(history, "val_loss")
    if np.isfinite(val_loss).any():
        best = epoch[np.nanargmin(val_loss)]
        for axes in (loss, error, rate):
            axes.axvline(best, color=BLACK, lw=0.8, ls=":", zorder=0)
        set_title(
            loss, f"Training, {counted(len(history), 'epoch')}: lowest validation loss in epoch {best:.0f} (dotted)"
        )
    loss.legend(fontsize=8.5, frameon=False, loc="best", ncols=2)
    error.legend(fontsize=8.5, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
    for axes in (loss, error, rate):
        tidy(axes)
    return figure


def _column(history: Sequence[Mapping[str, float | int | None]], key: str) -> Float:
    """A metric by epoch; NaN, a gap in the curve, where an epoch has none."""
    values = [epoch.get(key) for epoch in history]
    return np.array([np.nan if value is None else value for value in values], np.float64)
