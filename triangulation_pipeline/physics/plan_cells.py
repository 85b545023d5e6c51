"""The places of a plan: a regular division of a service area."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from triangulation_pipeline.frame import LocalFrame, ServiceArea, surface_up_m
from triangulation_pipeline.network import FARTHEST_M, ReceiverNetwork, Site
from triangulation_pipeline.physics.geometry import inside_hull
from triangulation_pipeline.physics.scenario import Scenario

Float = NDArray[np.float64]
Bool = NDArray[np.bool_]

_PER_SIDE = 48


@dataclass(frozen=True, eq=False)
class Cells:
    """A regular division of an area, in the frame of a network."""

    frame: LocalFrame
    area: ServiceArea
    per_side: int
    altitude_m: float  # of the transmitters

    @cached_property
    def en_m(self) -> Float:
        """(c, 2) middles of the cells, east and north, metres; east varies fastest."""
        return self.area.cell_centres(self.per_side)

    @cached_property
    def share(self) -> Float:
        """(c,) share of each cell in the area on the curved surface; their sum is 1."""
        _, (slope_e, slope_n) = surface_up_m(self.en_m, self.frame.surface_coefficients, self.altitude_m)
        size = np.sqrt(1 + slope_e**2 + slope_n**2)
        return size / size.sum()

    def inside_hull(self, network: ReceiverNetwork) -> Bool:
        """(c,) whether the middle of a cell lies within the convex hull of the sites."""
        return inside_hull(site_enu_m(self.frame, network.sites)[:, :2], self.en_m)

    def place(self, cell: int) -> tuple[float, float]:
        """Latitude and longitude of the middle of a cell, degrees."""
        lat, lon = self.frame.geodetic(self.en_m[cell], self.altitude_m)
        return float(lat), float(lon)


def service_cells(networks: Sequence[ReceiverNetwork], scenario: Scenario, per_side: int = _PER_SIDE) -> Cells:
    """The service area of some networks together, divided into cells.

    Parameters
    ----------
    networks : sequence of ReceiverNetwork
        The frame is that of the first.
    scenario : Scenario
        Has the margin around the sites, and the altitude of the transmitters.
    per_side : int
        Cells per side.

    Returns
    -------
    Cells

    Raises
    ------
    ValueError
        If a site is too far away for one frame.
    """
    frame = networks[0].frame
    for network in networks[1:]:
        away_m = float(np.linalg.norm(site_enu_m(frame, network.sites), axis=1).max())
        if away_m > FARTHEST_M:
            raise ValueError(
                f"networks {networks[0].name!r} and {network.name!r} are {away_m / 1e3:,.0f} km apart; to be compared, "
                f"they must lie within {FARTHEST_M / 1e3:,.0f} km"
            )
    place_m = np.concatenate([site_enu_m(frame, network.sites)[:, :2] for network in networks])
    low, high = place_m.min(0) - scenario.area_margin_m, place_m.max(0) + scenario.area_margin_m
    area = ServiceArea(float(low[0]), float(high[0]), float(low[1]), float(high[1]))
    return Cells(frame, area, per_side, scenario.transmitter_altitude_m)


def site_enu_m(frame: LocalFrame, sites: Sequence[Site]) -> Float:
    """(r, 3) east, north and up of sites in a frame, metres."""
    return frame.enu_m([s.lat for s in sites], [s.lon for s in sites], [s.altitude_m for s in sites])
