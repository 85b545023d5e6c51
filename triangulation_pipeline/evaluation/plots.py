"""Pictures of a dataset, a training and an evaluation, each a Matplotlib figure of its own: no pyplot, no global state.

Colours are Okabe and Ito's (2008), told apart with any colour vision; maps use cividis for the same reason.
"""

import io
from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import BoundaryNorm
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager, get_font
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, PercentFormatter
from numpy.typing import NDArray
from PIL import Image

from triangulation_pipeline.evaluation.comparison import Comparison, Estimator, Subset
from triangulation_pipeline.network import ReceiverNetwork
from triangulation_pipeline.positions import chi_square_2
from triangulation_pipeline.samples import Samples

Float = NDArray[np.float64]

DPI = 100
COLOURS = 96
WIDTH_IN = 7.4
# More points hide each other, and weigh on the picture.
MAX_MAP_POINTS = 4000
# Longer names of sites are cut, or they would leave no room for the map.
MAX_NAME_CHARACTERS = 30
# Comes with Matplotlib; other fonts are the machine's.
OWN_FONT = "DejaVu Sans"

BLACK, ORANGE, SKY, GREEN, BLUE, VERMILION, PURPLE = (
    "#000000",
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#0072B2",
    "#D55E00",
    "#CC79A7",
)
GREY = "#8C8C8C"

# Name shown, colour, line style and width of each curve.
_CURVES: dict[Estimator, tuple[str, str, str, float]] = {
    Estimator.model: ("model", BLUE, "-", 2.6),
    Estimator.mixture_ml_from_truth: ("mixture likelihood, knows the truth", GREEN, "--", 1.6),
    Estimator.mixture_ml: ("mixture likelihood", GREEN, "-", 1.4),
    Estimator.huber_gauss_newton: ("Huber Gauss-Newton", ORANGE, "-", 1.6),
    Estimator.gauss_newton: ("Gauss-Newton", VERMILION, "-", 1.6),
    Estimator.level_posterior_mean: ("posterior mean, knows the site gains", GREEN, "--", 1.6),
    Estimator.power_weighted_centroid: ("power-weighted centroid", PURPLE, "-", 1.6),
}


def png(figure: Figure) -> bytes:
    """The figure as the bytes of a PNG file with a palette of 96 colours, a third of the size of full colour; the same
    for the same data and fonts."""
    # Names are users' text: a $ in them is a $, and begins no formula.
    for text in figure.findobj(Text):
        text.set_parse_math(False)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    image = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    # Maximum coverage keeps the colour of a thin line; the median cut would give it to the greys.
    image = image.quantize(COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    buffer = io.BytesIO()
    image.save(buffer, format="png", optimize=True)
    return buffer.getvalue()


def error_cdf(comparison: Comparison, subset: Subset = Subset.good_geometry) -> Figure:
    """Share of test rows with an error below x metres, for every estimator, on the rows that all have a fix on.

    The bound's curve is that of an efficient estimator under Gaussian noise with circular errors,
    ``1 - exp(-d^2 / b^2)`` for a row of bound b: the bound itself is an rms, which the median of an error may undercut.
    It is left out without arrival times, where knowing the area beats it.
    """
    figure, axes = _single(4.6)
    rows = comparison.common_rows(subset)
    _title(axes, f"How far off each estimator is: {_count(rows.sum(), 'test row')}{_where(comparison, subset)}")
    if not rows.any():
        return _empty(figure, axes, f"no test row{_where(comparison, subset)} with a fix by every estimator")
    shown = {name: np.sort(d[rows]) for name, d in comparison.distance_m.items() if d is not None}
    share = np.arange(rows.sum() + 1) / rows.sum()
    # The scale is that of the serious ones: by arrival times they are a thousand times better than the centroid.
    serious = [d for name, d in shown.items() if name is not Estimator.power_weighted_centroid]
    low = max(0.5, min(float(np.quantile(d, 0.01)) for d in serious))
    high = 2 * max(low, *(float(np.quantile(d, 0.99)) for d in serious))
    for name, (label, colour, style, width) in _CURVES.items():
        if name in shown:
            p50, p95 = np.quantile(shown[name], (0.5, 0.95))
            off = ", off scale" if p50 > high else ""
            label = f"{label} ({_metres(p50)} / {_metres(p95)}{off})"
            axes.step(
                np.insert(shown[name], 0, shown[name][0]),
                share,
                style,
                where="post",
                color=colour,
                lw=width,
                label=label,
                zorder=3 if name is Estimator.model else 2,
            )
    bound_m = comparison.crlb_m[rows & np.isfinite(comparison.crlb_m)]
    if comparison.ceiling is Estimator.mixture_ml_from_truth and len(bound_m):
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
    _metre_axis(axes, "x")
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


def calibration_curve(comparison: Comparison, subset: Subset = Subset.good_geometry) -> Figure:
    """Observed against nominal coverage of the model's error ellipses, and their difference, with the band in which
    95 % of perfectly calibrated models would lie (normal approximation of the binomial)."""
    figure = _figure(3.9)
    whole, difference = figure.subplots(1, 2)
    nees = comparison.nees[comparison.rows(subset)]
    nominal = np.arange(100) / 100
    half_band = 1.96 * np.sqrt(nominal * (1 - nominal) / max(len(nees), 1))
    where = _where(comparison, subset)
    figure.suptitle(
        f"Does the error ellipse hold what it promises? {_count(len(nees), 'test row')}{where}", fontsize=11
    )
    if not len(nees):
        difference.remove()
        return _empty(figure, whole, f"no test row{where}")
    limits = [chi_square_2(p) for p in nominal]
    observed = np.searchsorted(np.sort(nees[np.isfinite(nees)]), limits, side="right") / len(nees)
    whole.fill_between(
        nominal, np.maximum(nominal - half_band, 0), np.minimum(nominal + half_band, 1), color=GREY, alpha=0.3, lw=0
    )
    whole.plot([0, 1], [0, 1], "--", color=BLACK, lw=1, label="perfect")
    whole.plot(nominal, observed, color=BLUE, lw=2.2, label="model")
    whole.set_ylabel("observed coverage")
    whole.set_xlim(0, 1)
    whole.set_ylim(0, 1)
    whole.yaxis.set_major_formatter(PercentFormatter(1))
    whole.legend(loc="best", fontsize=8.5, frameon=False)
    difference.fill_between(
        nominal, -100 * half_band, 100 * half_band, color=GREY, alpha=0.3, lw=0, label="chance (95 % band)"
    )
    difference.axhline(0, color=BLACK, ls="--", lw=1)
    difference.plot(nominal, 100 * (observed - nominal), color=BLUE, lw=2.2)
    difference.plot(0.95, 100 * (observed[95] - 0.95), "o", color=BLUE, ms=6)
    _title(difference, f"The 95 % ellipse (dot) covers {100 * observed[95]:.1f} %", 9.5)
    _title(whole, "Share of errors inside the ellipse", 9.5)
    difference.set_xlim(0, 1)
    difference.set_ylabel("observed minus nominal, percentage points")
    difference.legend(loc="lower left", fontsize=8.5, frameon=False)
    difference.margins(y=0.15)
    for axes in (whole, difference):
        axes.set_xlabel("nominal coverage")
        axes.xaxis.set_major_formatter(PercentFormatter(1))
        _plain(axes)
    return figure


def error_map(network: ReceiverNetwork, comparison: Comparison) -> Figure:
    """Where the test transmitters stand and how far off the model is on each."""
    distance = comparison.distance_m[Estimator.model]
    assert distance is not None
    return _map(
        network,
        comparison.truth_en_m,
        distance,
        "Where the model errs",
        "test transmitters",
        "the model's position error",
        "no position",
    )


def dataset_map(network: ReceiverNetwork, batch: Samples) -> Figure:
    """Where a dataset's transmitters stand and how well each can be located at best."""
    en_m = network.frame.en_m(batch.tx_lat, batch.tx_lon, 0.0)
    return _map(
        network,
        en_m,
        batch.crlb_m.astype(np.float64),
        "How well each place can be located at best",
        "transmitters",
        "Cramér-Rao bound (rms position error)",
        "no bound",
    )


def dataset_histograms(batch: Samples) -> Figure:
    """SNR of the detections, HDOP and the number of detections of a transmission."""
    figure = _figure(3.3)
    snr, dilution, detections = figure.subplots(1, 3)
    figure.suptitle(f"What the receivers hear of {len(batch):,} transmissions", fontsize=11)

    snr_db = batch.snr_db[batch.signal_present]
    snr.set_xlabel("SNR of a detection, dB")
    snr.set_ylabel("share")
    if len(snr_db):
        snr.hist(snr_db, bins=40, weights=np.full(len(snr_db), 1 / len(snr_db)), color=BLUE)
        _title(snr, f"median {np.median(snr_db):.0f} dB", 9.5)
    else:
        _empty(figure, snr, "no detection")

    hdop = batch.hdop[np.isfinite(batch.hdop)]
    dilution.set_xlabel("HDOP")
    if len(hdop):
        last = float(max(np.quantile(hdop, 0.99), 1.5 * hdop.min()))
        bins = np.geomspace(hdop.min(), last, 41)
        dilution.hist(np.minimum(hdop, last), bins=bins, weights=np.full(len(hdop), 1 / len(hdop)), color=ORANGE)
        dilution.set_xscale("log")
        dilution.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        dilution.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        dilution.xaxis.set_minor_formatter(NullFormatter())
        _title(dilution, f"median {np.median(hdop):.2f}, last bar: {last:.2g} and more", 9.5)
    else:
        _empty(figure, dilution, "no transmission with\nthree arrival times")

    detections.set_xlabel("detections of a transmission")
    if len(batch):
        count = np.arange(batch.num_sites + 1)
        detections.bar(count, np.bincount(batch.num_detections, minlength=len(count)) / len(batch), color=GREEN)
        detections.xaxis.set_major_locator(MaxNLocator(integer=True))
        detections.set_xlim(max(batch.num_detections.min() - 0.6, -0.6), len(count) - 0.4)
        _title(detections, f"mean {batch.num_detections.mean():.1f} of {batch.num_sites}", 9.5)
    else:
        _empty(figure, detections, "no transmission")
    for axes in (snr, dilution, detections):
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        _plain(axes)
    return figure


def training_curves(
    history: Sequence[Mapping[str, float | int | None]],
    limit_m: float | None = None,
    limit_p50_m: float | None = None,
) -> Figure:
    """Loss, error and learning rate by epoch, from a trainer's history; ``limit_m`` is the rms Cramér-Rao bound of the
    validation rows with good geometry, ``limit_p50_m`` what the bounds of all of them leave for the median."""
    figure = _figure(6.4)
    loss, error, rate = figure.subplots(3, 1, sharex=True, height_ratios=(1, 1.7, 0.6))
    if not history:
        for axes in (error, rate):
            axes.remove()
        return _empty(figure, loss, "no epoch yet")
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
        error.axhline(limit_m, color=BLUE, ls="--", lw=1.4, label=f"limit, good geometry: {_metres(limit_m)} rms")
    if limit_p50_m is not None:
        error.axhline(limit_p50_m, color=GREEN, ls="--", lw=1.4, label=f"limit of the median: {_metres(limit_p50_m)}")
    error.set_yscale("log")
    error.set_ylabel("position error")
    _metre_axis(error, "y")

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
        _title(loss, f"Training, {_count(len(history), 'epoch')}: lowest validation loss in epoch {best:.0f} (dotted)")
    loss.legend(fontsize=8.5, frameon=False, loc="best", ncols=2)
    error.legend(fontsize=8.5, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
    for axes in (loss, error, rate):
        _plain(axes)
    return figure


def _map(
    network: ReceiverNetwork, en_m: Float, value_m: Float, headline: str, what: str, meaning: str, missing: str
) -> Figure:
    figure, axes = _single(5.6)
    shown = slice(0, MAX_MAP_POINTS)
    (east_km, north_km), value_m = en_m[shown].T / 1e3, value_m[shown]
    known = np.isfinite(value_m)
    count = f"{len(value_m):,}" + (f" of {len(en_m):,}" if len(en_m) > len(value_m) else "")
    _title(axes, f"{headline}: {count} {what}")
    if not known.all():
        axes.scatter(east_km[~known], north_km[~known], s=9, marker="x", lw=0.8, color=GREY, label=missing)
    if known.any():
        order = np.argsort(value_m[known])  # the worst on top
        edges = _edges_m(value_m[known])
        points = axes.scatter(
            east_km[known][order],
            north_km[known][order],
            s=10,
            marker="s",
            c=value_m[known][order],
            norm=BoundaryNorm(edges, len(edges) + 1, extend="both"),
            cmap=colormaps["viridis_r"].resampled(len(edges) + 1),
            lw=0,
            antialiased=False,
        )
        bar = figure.colorbar(points, ax=axes, shrink=0.9, pad=0.02, ticks=edges)
        bar.set_label(meaning, fontsize=9)
        bar.ax.set_yticklabels([_metres(edge) for edge in edges], fontsize=8.5)
        bar.ax.minorticks_off()
    _draw_sites(axes, network)
    _draw_graticule(axes, network)
    axes.legend(loc="upper left", bbox_to_anchor=(-0.08, -0.04), ncols=2, fontsize=8.5, frameon=False)
    axes.set_aspect("equal")
    axes.set_xlabel("east, km", loc="right")  # beside the legend
    axes.set_ylabel("north, km")
    _plain(axes)
    return figure


def _draw_graticule(axes: Axes, network: ReceiverNetwork) -> None:
    """Lines of equal latitude and longitude, with their degrees, over what the axes show."""
    (west_km, east_km), (south_km, north_km) = axes.get_xlim(), axes.get_ylim()
    grid = np.stack(np.meshgrid(np.linspace(west_km, east_km, 121), np.linspace(south_km, north_km, 121)), axis=-1)
    lat, lon = network.frame.geodetic(1e3 * grid, 0.0)
    # Counted from the middle, so that nothing jumps at the 180th meridian; opposite the middle beyond a pole it must.
    lon_off = (lon - network.frame.lon + 180) % 360 - 180
    lon_off[np.abs(lon_off) > 175] = np.nan
    for value, offset, names in ((lat, 0.0, "NS"), (lon_off, network.frame.lon, "EW")):
        low, high = float(np.nanmin(value)) + offset, float(np.nanmax(value)) + offset
        levels = np.asarray(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high))
        levels = levels[(levels > low) & (levels < high)]
        if len(levels):
            lines = axes.contour(
                *np.moveaxis(grid, -1, 0),
                value,
                levels - offset,
                colors=GREY,
                linewidths=0.6,
                linestyles="solid",
                zorder=0,
            )
            shown = {float(at): _degrees(level, names) for at, level in zip(lines.levels, levels, strict=True)}
            for label in axes.clabel(lines, fmt=shown, fontsize=7.5, colors=BLACK):
                label.set(zorder=2.5, bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.5})


def _degrees(value: float, names: str) -> str:
    """As in 45.25° N; longitudes beyond 180 come from the other side."""
    value = round(value if names == "NS" else (value + 180) % 360 - 180, 6)
    return f"{abs(value):g}°" + ("" if value in (0, -180) else f" {names[int(value < 0)]}")


def _edges_m(value_m: Float) -> list[float]:
    """Two to a dozen round borders, that divide the middle 98 % of the values."""
    low, high = np.log10(np.maximum(np.quantile(value_m, (0.01, 0.99)), 1e-3))
    steps = (1, 1.5, 2, 3, 5, 7) if high - low < 1.7 else (1, 2, 5) if high - low < 4 else (1,)
    decades = range(int(np.floor(low)), int(np.ceil(high)) + 1)
    ladder = [step * 10.0**decade for decade in decades for step in steps]
    inside = [edge for edge in ladder if 10**low < edge < 10**high]
    return inside if len(inside) >= 2 else [ladder[0], ladder[-1]]


def _draw_sites(axes: Axes, network: ReceiverNetwork) -> None:
    """Triangles with names: above, or below where a named neighbour is close. A name that no font of this machine can
    write gives way to the site's number in the network."""
    site_km = network.site_enu_m[:, :2] / 1e3
    names = [
        name if len(name) <= MAX_NAME_CHARACTERS else f"{name[:MAX_NAME_CHARACTERS]}…"
        for name in (site.name for site in network.sites)
    ]
    fonts = [_fonts(name) for name in names]
    axes.scatter(
        site_km[:, 0],
        site_km[:, 1],
        marker="^",
        s=70,
        color=VERMILION,
        edgecolor="white",
        lw=1,
        zorder=3,
        label="receiver" + ("" if all(fonts) else " (its number, where no font here has its name)"),
    )
    near_km = 0.1 * np.ptp(site_km, axis=0).max()
    for i, (name, font, place) in enumerate(zip(names, fonts, site_km, strict=True)):
        crowded = i > 0 and np.hypot(*(site_km[:i] - place).T).min() < near_km
        axes.annotate(
            name if font else f"{i + 1}",
            place,
            xytext=(0, -7 if crowded else 6),
            textcoords="offset points",
            ha="center",
            va="top" if crowded else "bottom",
            fontsize=8,
            fontfamily=font or OWN_FONT,
            zorder=4,
            bbox={"boxstyle": "round,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.75},
        )


def _fonts(name: str) -> list[str]:
    """Families of fonts that together have all characters of a name, Matplotlib's own first; none where the machine
    lacks one for a character."""
    found = [_font_of(character) for character in sorted(set(name))]
    return [] if None in found else sorted({OWN_FONT, *filter(None, found)}, key=lambda family: family != OWN_FONT)


@cache
def _font_of(character: str) -> str | None:
    """The family of an upright font of this machine that can draw the character: Matplotlib's own, else Noto's, which
    are made to go with each other, else the first by name."""
    upright = [entry for entry in fontManager.ttflist if entry.style == "normal"]
    upright.sort(key=lambda entry: (entry.name != OWN_FONT, not entry.name.startswith("Noto Sans"), entry.name))
    # The last resort is a placeholder for whatever other fonts lack.
    names = (e.name for e in upright if not e.name.startswith("Last Resort") and _draws(e.fname, character))
    return next(names, None)


def _draws(path: str, character: str) -> bool:
    try:
        font = get_font(path)
        if ord(character) not in font.get_charmap():
            return False
        font.set_size(8, DPI)
        font.load_char(ord(character))
    except (OSError, RuntimeError):
        return False  # one that cannot be read, or of coloured pictures
    return True


def _figure(height_in: float) -> Figure:
    return Figure(figsize=(WIDTH_IN, height_in), dpi=DPI, layout="constrained")


def _single(height_in: float) -> tuple[Figure, Axes]:
    figure = _figure(height_in)
    return figure, figure.subplots()


def _title(axes: Axes, text: str, size: float = 11) -> None:
    axes.set_title(text, fontsize=size)


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8.5)
    axes.xaxis.label.set_fontsize(9)
    axes.yaxis.label.set_fontsize(9)


def _empty(figure: Figure, axes: Axes, text: str) -> Figure:
    """Says in words that there is nothing to draw."""
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", fontsize=10)
    axes.set_xticks([])
    axes.set_yticks([])
    return figure


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _where(comparison: Comparison, subset: Subset) -> str:
    return f" with GDOP < {comparison.max_gdop:g}" if subset is Subset.good_geometry else ""


def _column(history: Sequence[Mapping[str, float | int | None]], key: str) -> Float:
    """A metric by epoch; NaN, a gap in the curve, where an epoch has none."""
    values = [epoch.get(key) for epoch in history]
    return np.array([np.nan if value is None else value for value in values], np.float64)


def _metre_axis(axes: Axes, which: str) -> None:
    """Ticks of a logarithmic axis in metres and kilometres, instead of powers of ten."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    low, high = sorted(axis.get_view_interval())
    decades = np.log10(max(high, 1e-9) / max(low, 1e-9))
    axis.set_major_locator(LogLocator(subs=(1,) if decades > 5 else (1, 3) if decades > 2 else (1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda x, _: _metres(x)))
    axis.set_minor_formatter(NullFormatter())


def _metres(value_m: float) -> str:
    """Three digits at most: 8.3 m, 24 m, 1.5 km, 120 km."""
    value, unit = (value_m / 1e3, "km") if value_m >= 1e3 else (value_m, "m")
    return f"{value:.0f} {unit}" if value >= 10 or value == round(value) else f"{value:.1f} {unit}"
