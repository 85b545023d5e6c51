"""Regions of highest density as polygons on the earth."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import antimeridian
import contourpy
import numpy as np
import shapely
from numpy.typing import NDArray

from triangulation_pipeline.frame import LocalFrame
from triangulation_pipeline.positions.mixtures import MixturePositions

Float = NDArray[np.float64]
Polygons = NDArray[np.object_]

# Cells of a grid: so many for a standard deviation of the narrowest component, within these limits per side.
_CELLS_PER_SIGMA, _FEWEST_CELLS, _MOST_CELLS = 4, 24, 160
# Outlines are simplified by at most so many standard deviations of the narrowest component.
_SIMPLIFIED_SIGMAS = 0.02
# Components whose peak is by so many nats below the border do not move it.
_COUNTED_NATS = 7.0
_FARTHEST_M = 3000e3
_MOST_EXCESS = 50.0
# So many degrees of freedom are a Gaussian, to the digits of single precision.
_GAUSSIAN_FREEDOM = 1e6


def region_polygons(
    positions: MixturePositions, frame: LocalFrame, altitude_m: Float, levels: Sequence[float]
) -> Polygons:
    """The regions of highest density of some probabilities, on the earth.

    A place lies in the polygon if ``MixturePositions.covers`` says so, but for the width of its outline: the density is
    contoured at the border of the region, on grids that follow the shape of each part.

    Parameters
    ----------
    positions : MixturePositions
        n posteriors.
    frame : LocalFrame
        Their frame.
    altitude_m : ndarray, shape (n,)
        Altitude of the transmitters over the ellipsoid, metres.
    levels : sequence of float
        l probabilities, each above 0 and below 1.

    Returns
    -------
    ndarray of shapely.MultiPolygon, shape (n, l)
        Longitude and latitude, WGS-84 degrees; exterior rings run anticlockwise, interior ones clockwise. Longitudes
        are counted from the frame, so that they may go beyond 180: ``within_180`` splits there. Empty in a row without
        a position.
    """
    border = positions.region_log_density(levels)
    solution = positions.alternatives().of_component
    drawn = np.full(border.shape, shapely.MultiPolygon(), dtype=object)
    for row, column in np.argwhere(np.isfinite(border)):
        drawn[row, column] = _multi(_contours(positions, row, solution[row], border[row, column]))
    flat = drawn.ravel()
    corner_m, index = shapely.get_coordinates(flat, return_index=True)
    # A region of a hopeless row may go beyond the horizon, where the frame ends.
    corner_m = corner_m * np.minimum(1.0, _FARTHEST_M / np.maximum(np.hypot(*corner_m.T), 1.0))[:, None]
    of_corner = np.broadcast_to(altitude_m[:, None], border.shape).ravel()[index]
    with np.errstate(invalid="ignore"):
        lat, lon = frame.geodetic(corner_m, of_corner)
    lon = frame.lon + (lon - frame.lon + 180) % 360 - 180
    on_earth = shapely.set_coordinates(flat, np.stack([lon, lat], axis=-1))
    # Outlines around a pole, or at the horizon, cross themselves.
    for crossed in np.flatnonzero(~shapely.is_valid(on_earth)):
        on_earth[crossed] = _multi(shapely.make_valid(on_earth[crossed], method="structure", keep_collapsed=False))
    on_earth = shapely.orient_polygons(on_earth)
    return np.reshape(on_earth, border.shape)


def within_180(polygons: shapely.MultiPolygon) -> shapely.MultiPolygon:
    """The same region with longitudes from -180 to 180, split at the 180th meridian (RFC 7946, section 3.1.9)."""
    west, _, east, _ = polygons.bounds
    if not polygons.is_empty and (west < -180 or east > 180):
        return _multi(antimeridian.fix_multi_polygon(polygons))
    return polygons


def _multi(shape: shapely.Geometry) -> shapely.MultiPolygon:
    """The polygons of a shape. Lines and points, where outlines touch, have no area."""
    return shapely.MultiPolygon([part for part in shapely.get_parts(shape) if isinstance(part, shapely.Polygon)])


def _contours(positions: MixturePositions, row: int, solution: NDArray[np.int64], border: float) -> shapely.Geometry:
    """The region of one row where the log density is not below a border, in metres of its frame. Components of one
    solution share a grid."""
    exists = np.flatnonzero(positions.exists[row])
    scale_m2 = positions.scale_m2[row, exists]
    log_peak = positions.log_weight[row, exists] - np.log(2 * np.pi) - np.linalg.slogdet(scale_m2)[1] / 2
    counted = log_peak > border - _COUNTED_NATS
    density = _Density(
        log_peak[counted],
        positions.component_en_m[row, exists[counted]],
        scale_m2[counted],
        np.minimum(positions.freedom[row, exists[counted]], _GAUSSIAN_FREEDOM),
    )
    # Where the density reaches the border, some component reaches its share of it: within so many of its units.
    excess = (density.log_peak + np.log(len(density.log_peak)) - border) / (density.freedom / 2 + 1)
    reach = np.sqrt(density.freedom * np.expm1(np.clip(excess, 0, _MOST_EXCESS)))
    group = solution[exists[counted]]
    alone = np.flatnonzero(group < 0)
    group[alone] = len(solution) + alone
    found: list[shapely.Geometry] = []
    for number in np.unique(group[excess > 0]):
        found += _contour(density, np.flatnonzero((group == number) & (excess > 0)), reach, border)
    return shapely.union_all(found) if len(found) > 1 else found[0] if found else shapely.MultiPolygon()


def _contour(density: "_Density", members: NDArray[np.int64], reach: Float, border: float) -> list[shapely.Geometry]:
    """The parts of the region that lie within reach of some components."""
    # A grid along the axes of the shape that they have together, in units of its widths.
    scale_m2 = density.scale_m2[members]
    log_mass = density.log_peak[members] + np.linalg.slogdet(scale_m2)[1] / 2
    share = np.exp(log_mass - log_mass.max())
    share /= share.sum()
    middle_m = share @ density.centre_m[members]
    apart_m = density.centre_m[members] - middle_m
    axes_m = np.linalg.cholesky(np.einsum("k,kij->ij", share, scale_m2 + apart_m[:, :, None] * apart_m[:, None]))
    to_grid = np.linalg.inv(axes_m)
    centre, shape = apart_m @ to_grid.T, to_grid @ scale_m2 @ to_grid.T
    half = reach[members, None] * np.sqrt(np.diagonal(shape, 0, 1, 2))
    low, high = (centre - half).min(0), (centre + half).max(0)
    # A coarse grid tells where a fine one is needed.
    ticks = [np.linspace(low[i], high[i], _FEWEST_CELLS + 1) for i in range(2)]
    nodes = density.on_grid(ticks, middle_m, axes_m).T
    dense = np.argwhere(nodes >= border)
    peaks = centre[density.at(density.centre_m[members]) >= border]
    inside = np.concatenate([peaks, np.stack([ticks[0][dense[:, 0]], ticks[1][dense[:, 1]]], axis=-1)])
    if not len(inside):
        return []
    cell = (high - low) / _FEWEST_CELLS
    low, high = inside.min(0) - cell, inside.max(0) + cell
    width = np.sqrt(np.linalg.eigvalsh(shape[density.log_peak[members] > border])[:, 0].min(initial=1.0))
    cells = np.clip(np.ceil(_CELLS_PER_SIGMA * (high - low) / width), _FEWEST_CELLS, _MOST_CELLS).astype(int)
    ticks = [np.linspace(low[i], high[i], cells[i] + 1) for i in range(2)]
    values = density.on_grid(ticks, middle_m, axes_m)
    generator = contourpy.contour_generator(ticks[0], ticks[1], values, fill_type="OuterOffset")
    polygons: list[shapely.Geometry] = []
    for corners, ends in zip(*generator.filled(border, np.inf), strict=True):
        rings = [corners[start:end] for start, end in pairwise(ends)]
        outline = shapely.simplify(shapely.Polygon(rings[0], rings[1:]), _SIMPLIFIED_SIGMAS * width)
        polygons.append(shapely.transform(outline, lambda corner: middle_m + corner @ axes_m.T))
    return polygons


@dataclass(frozen=True)
class _Density:
    """The k components of one posterior that count."""

    log_peak: Float  # (k,) of the weighted density
    centre_m: Float  # (k, 2)
    scale_m2: Float  # (k, 2, 2)
    freedom: Float  # (k,)

    def at(self, en_m: Float) -> Float:
        """(m,) at the places (m, 2)."""
        # Single precision is enough, if the coordinates are small.
        origin_m = self.centre_m[0]
        precision = np.linalg.inv(self.scale_m2).astype(np.float32)
        freedom = self.freedom.astype(np.float32)
        e, n = np.moveaxis(
            (en_m - origin_m).astype(np.float32)[:, None] - (self.centre_m - origin_m).astype("f4"), -1, 0
        )
        squared = precision[:, 0, 0] * e * e + 2 * precision[:, 0, 1] * e * n + precision[:, 1, 1] * n * n
        highest = self.log_peak.max()
        relative = (self.log_peak - highest).astype(np.float32)
        parts = np.exp(relative - (freedom / 2 + 1) * np.log1p(squared / freedom))
        log_density: Float = highest + np.log(np.maximum(parts.sum(1, dtype=np.float64), 1e-300))
        return log_density

    def on_grid(self, ticks: Sequence[Float], middle_m: Float, axes_m: Float) -> Float:
        """(v, u) on the nodes of a grid: u ticks along the first of two axes, v along the second."""
        nodes = np.stack(np.meshgrid(*ticks), axis=-1)
        return self.at((middle_m + nodes @ axes_m.T).reshape(-1, 2)).reshape(nodes.shape[:2])
