"""Pictures of an evaluation."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from triangulation_pipeline.evaluation.comparison import Comparison
from triangulation_pipeline.evaluation.estimators import BEST_FIRST, MODEL, Float
from triangulation_pipeline.evaluation.reference import LABEL
from triangulation_pipeline.evaluation.summary import COVERAGE_LEVELS, Subset
from triangulation_pipeline.network import ReceiverNetwork
from triangulation_pipeline.plots.maps import MapWords, draw_map
from triangulation_pipeline.plots.style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    PALETTE,
    blank_axes,
    blank_figure,
    counted,
    metre_axis,
    metres,
    say_empty,
    set_title,
    tidy,
)


def error_cdf(comparison: Comparison, subset: Subset = Subset.good_geometry) -> Figure:
    """Fraction of the test rows with an error below x metres, per estimator, on the rows that all estimators located.

    The exact posterior, which is the limit, stands on those of these rows that it was computed on. The curve of the
    bound is that of an efficient estimator under Gaussian noise with circular errors, ``1 - exp(-d^2 / b^2)`` for a row
    of bound b: the bound itself is an rms, and the median of an error may lie below it. The curve is left out without
    arrival times, because an estimator that knows the area is better than that bound.
    """
    figure, axes = blank_axes(5.0)
    rows = comparison.common_rows(subset)
    set_title(axes, f"How far off each estimator is: {counted(rows.sum(), 'test row')}{_where(comparison, subset)}")
    if not rows.any():
        return say_empty(figure, axes, f"no test row{_where(comparison, subset)} with a fix by every estimator")
    shown = {estimator: np.sort(d[rows]) for estimator, d in comparison.distance_m.items() if d is not None}
    # By arrival times the serious ones are a thousand times better than a crude one.
    serious = [d for estimator, d in shown.items() if not estimator.is_crude]
    low = max(0.5, min(float(np.quantile(d, 0.01)) for d in serious))
    high = 2 * max(low, *(float(np.quantile(d, 0.99)) for d in serious))
    for estimator in BEST_FIRST:
        if estimator in shown:
            off = ", off scale" if np.median(shown[estimator]) > high else ""
            _draw_errors(
                axes,
                shown[estimator],
                estimator.label,
                off,
                color=PALETTE[estimator.colour],
                ls=estimator.line,
                lw=estimator.width,
                zorder=3 if estimator is MODEL else 2,
            )
    limit_m = np.sort(comparison.reference.distance_m[comparison.reference.rows & rows])
    if len(limit_m):
        _draw_errors(axes, limit_m, f"{LABEL}, {len(limit_m):,} of the rows", color=GREEN, lw=1.6, ls="--")
    bound_m = comparison.crlb_m[rows & np.isfinite(comparison.crlb_m)]
    if comparison.has_arrival_times and len(bound_m):
        x = np.geomspace(0.8 * low, high, 200)
        ideal = np.array([np.mean(-np.expm1(-((d / bound_m) ** 2))) for d in x])
        axes.plot(x, ideal, ":", color=BLACK, lw=1.6, label="Gaussian Cramér-Rao bound")
    for level in (0.5, 0.95):
        axes.axhline(level, color=GREY, lw=0.7, zorder=0)
    axes.set_xscale("log")
    axes.set_xlim(0.8 * low, high)
    axes.set_ylim(0, 1.01)
    axes.set_xlabel("position error (haversine distance)")
    axes.set_ylabel("share of test rows below")
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.set_yticks([0, 0.25, 0.5, 0.75, 0.95])
    metre_axis(axes, "x")
    figure.legend(
        loc="outside lower center",
        ncols=2,
        fontsize=8.5,
        frameon=False,
        title="(median / 95th percentile)",
        title_fontsize=8.5,
        columnspacing=1.2,
        handlelength=1.6,
    )
    return figure


def _draw_errors(axes: Axes, distance_m: Float, label: str, off: str = "", **style: Any) -> None:
    """The distribution of sorted errors as steps, with its median and 95th percentile in the legend."""
    p50, p95 = np.quantile(distance_m, (0.5, 0.95))
    fraction = np.arange(len(distance_m) + 1) / len(distance_m)
    label = f"{label} ({metres(p50)} / {metres(p95)}{off})"
    axes.step(np.insert(distance_m, 0, distance_m[0]), fraction, where="post", label=label, **style)


def calibration_curve(comparison: Comparison, subset: Subset = Subset.good_geometry) -> Figure:
    """Share of the true places within the model's regions of each probability, beside that of the exact posterior's;
    and its difference from the probability, with the band in which 95 % of perfectly calibrated models would lie
    (normal approximation of the binomial). Dots are the levels that a promotion judges."""
    figure = blank_figure(3.9)
    whole, difference = figure.subplots(1, 2)
    content = comparison.content[comparison.rows(subset)]
    nominal = np.arange(100) / 100
    half_band = 1.96 * np.sqrt(nominal * (1 - nominal) / max(len(content), 1))
    where = _where(comparison, subset)
    figure.suptitle(f"Do regions hold what they promise? {counted(len(content), 'test row')}{where}", fontsize=11)
    if not len(content):
        difference.remove()
        return say_empty(figure, whole, f"no test row{where}")
    observed = _covered(content, nominal)
    whole.fill_between(
        nominal, np.maximum(nominal - half_band, 0), np.minimum(nominal + half_band, 1), color=GREY, alpha=0.3, lw=0
    )
    whole.plot([0, 1], [0, 1], "--", color=BLACK, lw=1, label="perfect")
    whole.plot(nominal, observed, color=BLUE, lw=2.2, label="model")
    limit = comparison.reference.content[comparison.reference.rows & comparison.rows(subset)]
    if len(limit):
        label = f"{LABEL}, {counted(len(limit), 'row')}"
        whole.plot(nominal, _covered(limit, nominal), "--", color=GREEN, lw=1.2, label=label)
    whole.set_ylabel("true places inside")
    whole.set_xlim(0, 1)
    whole.set_ylim(0, 1)
    whole.yaxis.set_major_formatter(PercentFormatter(1))
    whole.legend(loc="best", fontsize=8.5, frameon=False)
    difference.fill_between(
        nominal, -100 * half_band, 100 * half_band, color=GREY, alpha=0.3, lw=0, label="chance (95 % band)"
    )
    difference.axhline(0, color=BLACK, ls="--", lw=1)
    difference.plot(nominal, 100 * (observed - nominal), color=BLUE, lw=2.2)
    levels = np.array(list(COVERAGE_LEVELS.values()))
    at_levels = _covered(content, levels)
    difference.plot(levels, 100 * (at_levels - levels), "o", color=BLUE, ms=5)
    held = ", ".join(f"{100 * share:.1f}" for share in at_levels)
    set_title(difference, f"Regions of {', '.join(f'{100 * level:g}' for level in levels)} %\nhold {held} %", 9.5)
    set_title(whole, "Share of true places inside the region", 9.5)
    difference.set_xlim(0, 1)
    difference.set_ylabel("difference, percentage points")
    difference.legend(loc="lower left", fontsize=8.5, frameon=False)
    difference.margins(y=0.15)
    for axes in (whole, difference):
        axes.set_xlabel("probability of the region")
        axes.xaxis.set_major_formatter(PercentFormatter(1))
        tidy(axes)
    return figure


def _covered(content: Float, level: Float) -> Float:
    """The share of the contents (n,) within each level (m,); NaN is outside."""
    return np.searchsorted(np.sort(content[np.isfinite(content)]), level, side="right") / len(content)


def error_map(network: ReceiverNetwork, comparison: Comparison) -> Figure:
    """The places of the test transmitters, and the error of the model on each."""
    return draw_map(
        network,
        comparison.truth_en_m,
        comparison.model_m,
        MapWords(
            headline="Where the model errs",
            places="test transmitters",
            meaning="the model's position error",
            missing="no position",
        ),
    )


def _where(comparison: Comparison, subset: Subset) -> str:
    return f" with GDOP < {comparison.max_gdop:g}" if subset is Subset.good_geometry else ""
