"""A map of the receivers and of values at places around them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager, get_font
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from triangulation_pipeline.frame import LocalFrame
from triangulation_pipeline.network import ReceiverNetwork, Site
from triangulation_pipeline.plots.style import BLACK, DPI, GREY, VERMILION, blank_axes, metres, set_title, tidy

Float = NDArray[np.float64]

# More points would hide each other, and make the file large.
MAX_MAP_POINTS = 4000
# Longer names are cut.
_MAX_NAME_CHARACTERS = 30
# More names would hide the map.
MAX_NAMES = 30
# This font comes with Matplotlib; the others are those of the machine.
OWN_FONT = "DejaVu Sans"


@dataclass(frozen=True)
class MapWords:
    """The words of a map."""

    headline: str
    places: str  # what stands at each place, in the plural
    meaning: str  # of the values
    missing: str  # where there is no value


def draw_map(network: ReceiverNetwork, en_m: Float, value_m: Float, words: MapWords) -> Figure:
    """The sites of the network, and values in metres (n,) as colours at the places (n, 2), metres east and north.

    Only the first MAX_MAP_POINTS places are drawn. A place with the value NaN is a cross.
    """
    figure, axes = blank_axes(5.6)
    shown = slice(0, MAX_MAP_POINTS)
    (east_km, north_km), value_m = en_m[shown].T / 1e3, value_m[shown]
    known = np.isfinite(value_m)
    count = f"{len(value_m):,}" + (f" of {len(en_m):,}" if len(en_m) > len(value_m) else "")
    set_title(axes, f"{words.headline}: {count} {words.places}")
    if not known.all():
        axes.scatter(east_km[~known], north_km[~known], s=9, marker="x", lw=0.8, color=GREY, label=words.missing)
    if known.any():
        order = np.argsort(value_m[known])  # the worst on top
        edges = round_edges(value_m[known])
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
        bar.set_label(words.meaning, fontsize=9)
        bar.ax.set_yticklabels([metres(edge) for edge in edges], fontsize=8.5)
        bar.ax.minorticks_off()
    draw_sites(axes, network.sites, network.site_enu_m[:, :2])
    draw_degrees(axes, network.frame)
    axes.legend(loc="upper left", bbox_to_anchor=(-0.08, -0.04), ncols=2, fontsize=8.5, frameon=False)
    axes.set_aspect("equal")
    axes.set_xlabel("east, km", loc="right")  # beside the legend
    axes.set_ylabel("north, km")
    tidy(axes)
    return figure


def draw_degrees(axes: Axes, frame: LocalFrame, *, on_axes: bool = False) -> bool:
    """Lines of equal latitude and longitude over what the axes show, with their degrees: on the lines, or at the lower
    and left axis if that is asked for and the map does not go around a pole. Whether they are at the axes."""
    (west_km, east_km), (south_km, north_km) = axes.get_xlim(), axes.get_ylim()
    grid = np.stack(np.meshgrid(np.linspace(west_km, east_km, 121), np.linspace(south_km, north_km, 121)), axis=-1)
    lat, lon = frame.geodetic(1e3 * grid, 0.0)
    # Longitudes are counted from the middle of the map, so that they do not jump at the 180th meridian. Beyond a pole,
    # opposite the middle, they must jump.
    lon_off = (lon - frame.lon + 180) % 360 - 180
    lon_off[np.abs(lon_off) > 175] = np.nan
    on_axes = on_axes and bool((np.diff(lon_off[0]) > 0).all() and (np.diff(lat[:, 0]) > 0).all())
    for value, offset, names in ((lat, 0.0, "NS"), (lon_off, frame.lon, "EW")):
        low, high = float(np.nanmin(value)) + offset, float(np.nanmax(value)) + offset
        levels = np.asarray(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high))
        levels = levels[(levels > low) & (levels < high)]
        if not len(levels):
            continue
        lines = axes.contour(
            *np.moveaxis(grid, -1, 0),
            value,
            levels - offset,
            colors=GREY,
            linewidths=0.6,
            linestyles="solid",
            zorder=1.5 if on_axes else 0,
        )
        if on_axes:
            along, km = (value[0], grid[0, :, 0]) if names == "EW" else (value[:, 0], grid[:, 0, 1])
            at_side = levels[(levels - offset >= along[0]) & (levels - offset <= along[-1])]
            ticks = np.interp(at_side - offset, along, km)
            axis = axes.xaxis if names == "EW" else axes.yaxis
            axis.set_ticks(ticks, [_degrees(level, names) for level in at_side])
        else:
            shown = {float(at): _degrees(level, names) for at, level in zip(lines.levels, levels, strict=True)}
            for label in axes.clabel(lines, fmt=shown, fontsize=7.5, colors=BLACK):
                label.set(zorder=2.5, bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.5})
    return on_axes


def _degrees(value: float, names: str) -> str:
    """A latitude (``names`` NS) or longitude (EW) as in 45.25° N; longitudes beyond 180 count from the other side."""
    value = round(value if names == "NS" else (value + 180) % 360 - 180, 6)
    return f"{abs(value):g}°" + ("" if value in (0, -180) else f" {names[int(value < 0)]}")


def round_edges(value: Float) -> list[float]:
    """Two to twelve round numbers that divide the middle 98 % of the values."""
    low, high = np.log10(np.maximum(np.quantile(value, (0.01, 0.99)), 1e-3))
    steps = (1, 1.5, 2, 3, 5, 7) if high - low < 1.7 else (1, 2, 5) if high - low < 4 else (1,)
    decades = range(int(np.floor(low)), int(np.ceil(high)) + 1)
    ladder = [step * 10.0**decade for decade in decades for step in steps]
    inside = [edge for edge in ladder if 10**low < edge < 10**high]
    return inside if len(inside) >= 2 else [ladder[0], ladder[-1]]


def short_name(name: str) -> str:
    """A name that leaves room for the map."""
    return name if len(name) <= _MAX_NAME_CHARACTERS else f"{name[:_MAX_NAME_CHARACTERS]}…"


def draw_sites(axes: Axes, sites: Sequence[Site], site_en_m: Float) -> None:
    """A triangle per site at its place (r, 2), metres east and north, with its name above, or below if a site with a
    name is close. If no font of this machine can write a name, the number of the site stands there instead."""
    site_km = site_en_m / 1e3
    names = [short_name(site.name) for site in sites]
    fonts = [_fonts(name) for name in names]
    numbered = len(sites) > MAX_NAMES
    why = " (its number)" if numbered else "" if all(fonts) else " (its number, where no font here has its name)"
    axes.scatter(
        site_km[:, 0],
        site_km[:, 1],
        marker="^",
        s=25 if numbered else 70,
        color=VERMILION,
        edgecolor="white",
        lw=1,
        zorder=3,
        label=f"receiver{why}",
    )
    near_km = 0.1 * np.ptp(site_km, axis=0).max()
    for i, (name, font, place) in enumerate(zip(names, fonts, site_km, strict=True)):
        crowded = i > 0 and np.hypot(*(site_km[:i] - place).T).min() < near_km
        axes.annotate(
            name if font and not numbered else f"{i + 1}",
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
    """Font families that together have all characters of a name, Matplotlib's own first. Empty if this machine has no
    font for one of the characters."""
    found = [_font_of(character) for character in sorted(set(name))]
    return [] if None in found else sorted({OWN_FONT, *filter(None, found)}, key=lambda family: family != OWN_FONT)


@cache
def _font_of(character: str) -> str | None:
    """The family of an upright font of this machine that can draw the character; None if there is no such font.

    Matplotlib's own comes first, then those of Noto, which are made to match each other, then the first by name.
    """
    upright = [entry for entry in fontManager.ttflist if entry.style == "normal"]
    upright.sort(key=lambda entry: (entry.name != OWN_FONT, not entry.name.startswith("Noto Sans"), entry.name))
    # The font Last Resort has only placeholders.
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
        return False  # the font cannot be read, or it consists of coloured pictures
    return True
