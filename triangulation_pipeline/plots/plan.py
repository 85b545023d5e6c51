"""Maps of a plan: how well each place can be located, by which geometry, and how many receivers hear."""

from collections.abc import Callable

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, Colormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from triangulation_pipeline.physics.plan import FurtherSite, NetworkPlan
from triangulation_pipeline.plots.maps import draw_degrees, draw_sites, round_edges, short_name
from triangulation_pipeline.plots.style import BLACK, PURPLE, blank_axes, metres, set_title, tidy

Float = NDArray[np.float64]

_NOTHING = "#DDDDDD"
# The bound with the other network over the bound with this one.
_FACTORS = (0.25, 0.5, 0.7, 0.9, 1.1, 1.4, 2.0, 4.0)


def bound_map(plan: NetworkPlan, further: FurtherSite | None = None, beside: NetworkPlan | None = None) -> Figure:
    """The bound of each place in metres, and where one more site would help most. The colours also serve a plan that is
    shown beside it."""
    figure, axes = _axes(plan, f"How well each place can be located at best: {short_name(plan.network.name)}")
    _fill(
        axes,
        plan,
        plan.bound_m,
        round_edges(_known(np.concatenate([each.bound_m for each in (plan, beside) if each is not None]))),
        colormaps["viridis_r"],
        "least rms position error (median transmission)",
        metres,
        missing="no bound: too few receivers hear",
    )
    if further is not None:
        east_km, north_km = plan.cells.frame.en_m(further.site.lat, further.site.lon, further.site.altitude_m) / 1e3
        axes.scatter(
            east_km, north_km, marker="*", s=190, color=PURPLE, edgecolor="white", zorder=3.5, label="best further site"
        )
    return _finish(figure, axes, plan)


def hdop_map(plan: NetworkPlan) -> Figure:
    """The horizontal dilution of precision of each place."""
    figure, axes = _axes(plan, f"Horizontal dilution of precision: {short_name(plan.network.name)}")
    _fill(
        axes,
        plan,
        plan.hdop,
        round_edges(_known(plan.hdop)),
        colormaps["viridis_r"],
        "HDOP of the receivers that hear (median)",
        lambda hdop: f"{hdop:g}",
        missing="fewer than three arrival times",
    )
    return _finish(figure, axes, plan)


def receiver_map(plan: NetworkPlan) -> Figure:
    """How many receivers hear a transmission from each place."""
    figure, axes = _axes(plan, f"How many receivers hear a transmission: {short_name(plan.network.name)}")
    most = len(plan.network.sites)
    edges = sorted({*MaxNLocator(8, integer=True).tick_values(0, most), 3.0})
    _fill(
        axes,
        plan,
        plan.receivers,
        [edge for edge in edges if 0 < edge < most],
        colormaps["viridis"],
        f"receivers of {most}, on average",
        lambda count: f"{count:g}",
        missing="outside the range of the path-loss model",
    )
    return _finish(figure, axes, plan)


def difference_map(plan: NetworkPlan, other: NetworkPlan) -> Figure:
    """By which factor the bound of each place is another with the other network; both plans have the same cells."""
    figure, axes = _axes(
        plan, f"Bound with {short_name(other.network.name)}, as a multiple of that with {short_name(plan.network.name)}"
    )
    with np.errstate(invalid="ignore"):
        factor = other.bound_m / plan.bound_m
    # A place that only one of them can locate is at the end of the scale.
    gained = np.isinf(plan.bound_m) & np.isfinite(other.bound_m)
    lost = np.isfinite(plan.bound_m) & np.isinf(other.bound_m)
    factor = np.where(gained, _FACTORS[0] / 2, np.where(lost, 2 * _FACTORS[-1], factor))
    _fill(
        axes,
        plan,
        factor,
        list(_FACTORS),
        colormaps["RdBu_r"],
        "bound with the other network (below 1: better)",
        lambda value: f"x {value:g}",
        missing="no bound with either",
    )
    return _finish(figure, axes, plan, other)


def _axes(plan: NetworkPlan, title: str) -> tuple[Figure, Axes]:
    """A figure as high as the area asks for."""
    area = plan.cells.area
    shape = (area.north_max_m - area.north_min_m) / (area.east_max_m - area.east_min_m)
    figure, axes = blank_axes(float(np.clip(5.8 * shape + 1.2, 3.2, 5.6)))
    set_title(axes, title)
    return figure, axes


def _known(values: Float) -> Float:
    """The finite ones; a 1 if there are none."""
    known = values[np.isfinite(values)]
    return known if len(known) else np.ones(1)


def _fill(
    axes: Axes,
    plan: NetworkPlan,
    values: Float,
    edges: list[float],
    colours: Colormap,
    meaning: str,
    words: Callable[[float], str],
    missing: str,
) -> None:
    """Colours and contour lines of the values of the cells, with a bar."""
    side = plan.cells.per_side
    east_km, north_km = np.moveaxis(plan.cells.en_m.reshape(side, side, 2) / 1e3, -1, 0)
    shown = np.ma.masked_invalid(values.reshape(side, side))
    axes.set_xlim(east_km.min(), east_km.max())
    axes.set_ylim(north_km.min(), north_km.max())
    axes.set_facecolor(_NOTHING)
    if shown.mask.any():
        axes.scatter([], [], marker="s", color=_NOTHING, edgecolor=BLACK, lw=0.5, label=missing)
    if shown.count():
        norm = BoundaryNorm(edges, len(edges) + 1, extend="both")
        filled = axes.contourf(
            east_km, north_km, shown, edges, norm=norm, cmap=colours.resampled(len(edges) + 1), extend="both"
        )
        lines = axes.contour(east_km, north_km, shown, edges, colors=BLACK, linewidths=0.7, zorder=2)
        axes.clabel(lines, fmt={edge: words(edge) for edge in edges}, fontsize=7.5)
        bar = axes.figure.colorbar(filled, ax=axes, shrink=0.9, pad=0.02, ticks=edges)
        bar.set_label(meaning, fontsize=9)
        bar.ax.set_yticklabels([words(edge) for edge in edges], fontsize=8.5)
        bar.ax.minorticks_off()


def _finish(figure: Figure, axes: Axes, plan: NetworkPlan, other: NetworkPlan | None = None) -> Figure:
    """Sites, degrees and a legend."""
    frame = plan.cells.frame
    sites = {site: None for each in (plan, other) if each is not None for site in each.network.sites}
    lat, lon, altitude_m = np.array([(site.lat, site.lon, site.altitude_m) for site in sites]).T
    draw_sites(axes, list(sites), frame.en_m(lat, lon, altitude_m))
    axes.set_aspect("equal")
    if not draw_degrees(axes, frame, on_axes=True):
        axes.set_xlabel("east, km", loc="right")
        axes.set_ylabel("north, km")
    axes.legend(loc="upper left", bbox_to_anchor=(-0.08, -0.06), ncols=3, fontsize=8.5, frameon=False)
    tidy(axes)
    return figure
