"""The receiver network: its sites.

Altitudes are metres above the WGS-84 ellipsoid, latitudes (``lat``) and longitudes (``lon``) are WGS-84 degrees.
"""

import hashlib
import json
import unicodedata
from collections.abc import Mapping
from enum import StrEnum
from functools import cached_property
from typing import Any, Self

import numpy as np
import pymap3d
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from triangulation_pipeline.frame import LocalFrame, ServiceArea
from triangulation_pipeline.validation import printable, refuse_booleans, without_controls

# Raised if the same description makes another network. It is part of assets' code versions.
NETWORK_VERSION = 1

# Every row of measurements is as wide as the network: with more sites the default dataset would take over a gigabyte.
FEWEST_SITES, MOST_SITES = 3, 500
# A position in the plane and the unknown time of emission take as many.
LEAST_ARRIVAL_TIMES = 3

# The greatest distance of a site from the middle of all, in a straight line: one frame is useless beyond it.
FARTHEST_M = 2000e3
# Transmitters that are farther from the middle of a network are out of its reach.
REACH_M = 1.5 * FARTHEST_M
# A site is a stray if it is this many times farther from the middle of the others than most of those are. A stray is
# odd if it is farther away than the first distance, and refused as a mistake beyond the second.
STRAY_EXTENTS, ODD_M, STRAY_M = 5, 50e3, 1000e3
# Two sites nearer to each other than this are one spot; two nearer than this share of the usual distance are odd.
SAME_SPOT_M = 0.1
TWIN_SHARE = 1e-3
# Sites stand in one line if they are less wide than this share of their length.
LINE_SHARE = 1e-3


class Timing(StrEnum):
    """The clock of a site. ``none`` sites measure only levels, all others also arrival times.

    ``gps`` is any clock that GPS disciplines. The others are clocks of well-known receivers: ``radarcape_gps``,
    ``beast`` (a free counter of 12 MHz), ``dump1090`` (time stamps of a plain RTL-SDR).
    """

    gps = "gps"
    radarcape_gps = "radarcape_gps"
    beast = "beast"
    dump1090 = "dump1090"
    none = "none"


# Standard deviations of one time stamp, as mlat-server takes them (``make_clock`` in mlat/clocktrack.py). Of ``gps``
# alone nothing follows: it may be a laboratory clock or an interrupt of a computer.
CLOCK_SIGMA_NS = {Timing.radarcape_gps: 15.0, Timing.beast: 83.0, Timing.dump1090: 500.0}


class Site(BaseModel):
    """One receiver: where its antenna is, how it keeps time and how well it hears."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(
        min_length=1,
        max_length=100,
        description="The name of the site has 1 to 100 characters and is unique within the network.",
    )
    lat: float = Field(
        ge=-90, le=90, description="The WGS-84 latitude of the antenna, in degrees from -90 to 90, north positive."
    )
    lon: float = Field(
        ge=-180, le=180, description="The WGS-84 longitude of the antenna, in degrees from -180 to 180, east positive."
    )
    altitude_m: float = Field(
        default=0.0,
        ge=-500,
        le=9000,
        description="The altitude of the antenna above the WGS-84 ellipsoid (as GPS gives it), -500 to 9000 m.",
    )
    timing: Timing = Field(
        default=Timing.gps,
        description="The clock of the site is gps, radarcape_gps, beast or dump1090 if it measures arrival times, and "
        "none if it reports signal strength only.",
    )
    noise_figure_db: float = Field(
        default=5.5, ge=0, le=30, description="The receiver adds noise by this noise figure, 0 to 30 dB."
    )
    gain_offset_db: float | None = Field(
        default=None,
        ge=-30,
        le=30,
        description="The receiver reads levels too high by this measured offset, -30 to 30 dB. It is subtracted from "
        "all levels. If it is left out, it is 0.",
    )

    _no_booleans = model_validator(mode="before")(refuse_booleans)
    _has_no_controls = field_validator("name")(without_controls)


class ReceiverNetwork(BaseModel):
    """Named sites, in a fixed order that every per-receiver array follows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(
        min_length=1,
        max_length=100,
        description="The name of the network has 1 to 100 characters and appears in lists.",
    )
    sites: tuple[Site, ...] = Field(
        description=f"The network has {FEWEST_SITES} to {MOST_SITES} sites; arrays with one value per receiver follow "
        "their order."
    )

    _has_no_controls = field_validator("name")(without_controls)

    @field_validator("sites")
    @classmethod
    def _sites_are_usable(cls, sites: tuple[Site, ...]) -> tuple[Site, ...]:
        if not FEWEST_SITES <= len(sites) <= MOST_SITES:
            raise ValueError(f"a network needs {FEWEST_SITES} to {MOST_SITES} sites, this one has {len(sites)}")
        names = [site.name for site in sites]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"site names must be unique, repeated: {', '.join(map(printable, repeated[:5]))}")
        # By distance, because on the 180th meridian and at a pole one spot has several longitudes.
        for i, j in zip(*np.nonzero(np.triu(_apart_m(sites) < SAME_SPOT_M, 1)), strict=True):
            raise ValueError(
                f"sites {sites[i].name!r} and {sites[j].name!r} stand on the same spot (lat {sites[j].lat:g}, lon "
                f"{sites[j].lon:g})"
            )
        _refuse_strays(sites)
        return sites

    # By the fields alone: pydantic would also compare cached arrays, which have no truth value.
    def __eq__(self, other: object) -> bool:
        return isinstance(other, ReceiverNetwork) and (self.name, self.sites) == (other.name, other.sites)

    def __hash__(self) -> int:
        return hash((self.name, self.sites))

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """pydantic's copy, without what was derived from the fields of before."""
        copy = super().model_copy(update=update, deep=deep)
        for name in copy.__dict__.keys() - type(self).model_fields.keys():
            del copy.__dict__[name]
        return copy

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON of the sites: the network's identity, which its name has no part in."""
        # The constant stands where the name once stood, so that datasets of the default network keep their identity.
        identity = {"name": "north-west-italy", "sites": self.model_dump(mode="json")["sites"]}
        canonical = json.dumps(identity, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    @cached_property
    def frame(self) -> LocalFrame:
        """The tangent frame at the middle of the sites' bounding box. If the longitudes jump, across the 180th meridian
        or around a pole, it is at the mean place of the sites."""
        lat = [site.lat for site in self.sites]
        lon = [site.lon for site in self.sites]
        if max(lon) - min(lon) <= 180:
            return LocalFrame((min(lat) + max(lat)) / 2, (min(lon) + max(lon)) / 2)
        middle_lat, middle_lon, _ = pymap3d.ecef2geodetic(*_ecef_m(self.sites).mean(0))
        return LocalFrame(float(middle_lat), float(middle_lon))

    @cached_property
    def site_enu_m(self) -> NDArray[np.float64]:
        """Antenna positions in the local frame, (r, 3), metres."""
        return self.frame.enu_m(
            [s.lat for s in self.sites], [s.lon for s in self.sites], [s.altitude_m for s in self.sites]
        )

    @cached_property
    def has_timing(self) -> NDArray[np.bool_]:
        """(r,) whether each site measures arrival times."""
        return np.array([site.timing is not Timing.none for site in self.sites])

    @property
    def locates_by_time(self) -> bool:
        """Whether at least three sites measure arrival times."""
        return bool(self.has_timing.sum() >= LEAST_ARRIVAL_TIMES)

    def service_area(self, margin_m: float) -> ServiceArea:
        """The sites' bounding box in the local frame, widened on all sides.

        Parameters
        ----------
        margin_m : float
            Width of the margin, metres.

        Returns
        -------
        ServiceArea
        """
        low = self.site_enu_m[:, :2].min(0) - margin_m
        high = self.site_enu_m[:, :2].max(0) + margin_m
        return ServiceArea(float(low[0]), float(high[0]), float(low[1]), float(high[1]))

    def oddities(self) -> list[str]:
        """What is allowed but often a mistake: for a warning before any work starts.

        Returns
        -------
        list of str
            One sentence each: names that look alike, sites close to each other, far from all others or in one line, too
            few clocks.
        """
        folded: dict[str, str] = {}
        found = [
            f"the names of sites {other!r} and {site.name!r} look alike"
            for site in self.sites
            if (other := folded.setdefault(folded_name(site.name), site.name)) != site.name
        ]
        distance_m = _apart_m(self.sites)
        extent_m = float(np.median(distance_m[~np.eye(len(self.sites), dtype=bool)]))
        for i, j in zip(*np.nonzero(np.triu(distance_m < TWIN_SHARE * extent_m, 1)), strict=True):
            found.append(
                f"sites {self.sites[i].name!r} and {self.sites[j].name!r} are {distance_m[i, j]:.0f} m apart, the "
                f"network's sites typically {extent_m / 1e3:.0f} km"
            )
        for site, away_m, spread_m in _strays(self.sites, ODD_M):
            found.append(_stray_sentence(self.sites, site, away_m, spread_m))
        length_m, width_m = np.linalg.svd(self.site_enu_m[:, :2] - self.site_enu_m[:, :2].mean(0))[1]
        if width_m < LINE_SHARE * length_m:
            found.append(
                "the sites stand in one line; a place and its mirror image on the other side look the same to them"
            )
        if not self.locates_by_time:
            found.append(
                f"{int(self.has_timing.sum())} of the {len(self.sites)} sites measure arrival times; without three the "
                "network locates by signal strength alone, to tens of kilometres"
            )
        return found


def _ecef_m(sites: tuple[Site, ...]) -> NDArray[np.float64]:
    """(r, 3) metres, earth-centred, on the ellipsoid."""
    return np.stack(pymap3d.geodetic2ecef(np.array([s.lat for s in sites]), np.array([s.lon for s in sites]), 0.0), -1)


def _apart_m(sites: tuple[Site, ...]) -> NDArray[np.float64]:
    """(r, r) straight distances between the sites, metres, without altitudes."""
    place_m = _ecef_m(sites)
    return np.linalg.norm(place_m[:, None] - place_m[None], axis=-1)


def folded_name(name: str) -> str:
    """A text that is equal for names that look alike: without case, joiners, and variants of one letter."""
    return unicodedata.normalize("NFKC", name.replace("\u200c", "").replace("\u200d", "")).casefold()


def _strays(sites: tuple[Site, ...], least_m: float) -> list[tuple[Site, float, float]]:
    """Sites far from the middle of the others: the site, its distance, and that of the farthest of the others, m."""
    place_m = _ecef_m(sites)
    middle_m = np.median(place_m, axis=0)
    away_m = np.linalg.norm(place_m - middle_m, axis=-1)
    # Fewer than half can stray: of the others the median is the middle.
    near = away_m <= np.sort(away_m)[len(sites) // 2]
    spread_m = float(away_m[near].max())
    is_stray = (away_m > least_m) & (away_m > STRAY_EXTENTS * spread_m)
    return [(site, float(away_m[i]), spread_m) for i, site in enumerate(sites) if is_stray[i]]


def _stray_sentence(sites: tuple[Site, ...], site: Site, away_m: float, spread_m: float) -> str:
    others = tuple(other for other in sites if other is not site)
    return (
        f"site {site.name!r} (lat {site.lat:g}, lon {site.lon:g}) lies {away_m / 1e3:,.0f} km from the middle of the "
        f"others, most of which are within {spread_m / 1e3:,.0f} km of it{_slip(site, others, spread_m)}"
    )


def _slip(site: Site, others: tuple[Site, ...], spread_m: float) -> str:
    """The slip of the pen that would put the site in this place, in words; empty if there is none."""
    if site.lat == 0 and site.lon == 0:
        return "; lat and lon 0 look as if they were never filled in"
    middle_m = np.median(_ecef_m(others), axis=0)
    for lat, lon, words in (
        (site.lon, site.lat, "lat and lon look swapped"),
        (-site.lat, site.lon, "the sign of lat looks wrong"),
        (site.lat, -site.lon, "the sign of lon looks wrong"),
        (-site.lat, -site.lon, "the signs of lat and lon look wrong"),
    ):
        if abs(lat) <= 90:
            meant_m = np.array(pymap3d.geodetic2ecef(lat, lon, 0.0))
            if np.linalg.norm(meant_m - middle_m) < 3 * spread_m + ODD_M:
                return f"; {words}"
    return ""


def _refuse_strays(sites: tuple[Site, ...]) -> None:
    place_m = _ecef_m(sites)
    for site, away_m, spread_m in _strays(sites, STRAY_M):
        near = np.linalg.norm(place_m - place_m[sites.index(site)], axis=-1) <= spread_m
        # As many as can locate, that stand as close together as the others do, are an island and no mistake.
        if near.sum() < LEAST_ARRIVAL_TIMES:
            raise ValueError(_stray_sentence(sites, site, away_m, spread_m))
    away_m = np.linalg.norm(place_m - (place_m.min(0) + place_m.max(0)) / 2, axis=-1)
    if away_m.max() > FARTHEST_M:
        site = sites[int(away_m.argmax())]
        raise ValueError(
            f"sites must lie within {FARTHEST_M / 1e3:,.0f} km of their middle, and {site.name!r} (lat {site.lat:g}, "
            f"lon {site.lon:g}) lies {away_m.max() / 1e3:,.0f} km from it"
        )


NORTH_WEST_ITALY = ReceiverNetwork(
    name="north-west-italy",
    sites=tuple(
        Site(name=name, lat=lat, lon=lon, altitude_m=altitude_m)
        for name, lat, lon, altitude_m in (
            ("Aquila di Giaveno", 45.02, 7.29, 600),
            ("Montanaro", 45.234, 7.857, 300),
            ("Torino", 45.044, 7.672, 250),
            ("Coazze", 45.03, 7.27, 700),
            ("Passo dei Giovi", 44.561, 8.956, 480),
            ("Genova", 44.395, 8.956, 100),
            ("Milano-Baggio", 45.478, 9.123, 120),
        )
    ),
)


def random_network(
    sites: int, seed: int, *, lat: float = 45.0, lon: float = 8.2, extent_km: float = 150.0
) -> ReceiverNetwork:
    """A random network, the same for the same seed.

    No two sites are closer than a tenth of their mean spacing. Altitudes are 0 to 800 m, and all sites have GPS timing.

    Parameters
    ----------
    sites : int
        Number of sites, 3 to 500.
    seed : int
        Seed of the draw.
    lat, lon : float
        Middle of the square, WGS-84 degrees.
    extent_km : float
        Side of the square, km.

    Returns
    -------
    ReceiverNetwork

    Raises
    ------
    ValueError
        If ``sites`` is out of range.
    """
    if not FEWEST_SITES <= sites <= MOST_SITES:
        raise ValueError(f"sites must be {FEWEST_SITES} to {MOST_SITES}, got {sites}")
    rng = np.random.Generator(np.random.Philox(key=seed))
    frame = LocalFrame(lat, lon)
    least_m = 0.1 * extent_km * 1e3 / np.sqrt(sites)
    placed = np.empty((0, 2))
    while len(placed) < sites:
        candidate = rng.uniform(-0.5, 0.5, 2) * extent_km * 1e3
        if np.all(np.hypot(*(placed - candidate).T) >= least_m):
            placed = np.vstack([placed, candidate])
    lats, lons = frame.geodetic(placed, 0.0)
    altitudes_m = rng.uniform(0, 800, sites)
    return ReceiverNetwork(
        name=f"random-{sites}-{seed}",
        sites=tuple(
            Site(name=f"site-{i + 1:02d}", lat=round(la, 6), lon=round(lo, 6), altitude_m=round(alt, 1))
            for i, (la, lo, alt) in enumerate(zip(lats, lons, altitudes_m, strict=True))
        ),
    )
