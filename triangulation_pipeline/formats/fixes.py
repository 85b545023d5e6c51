"""Fixes: what is told of each located transmission, as a table; and the same as CSV."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, BinaryIO, Self

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv as pa_csv
from numpy.typing import NDArray

from triangulation_pipeline.frame import haversine_m
from triangulation_pipeline.measurements import Measurements
from triangulation_pipeline.network import LEAST_ARRIVAL_TIMES, REACH_M, ReceiverNetwork
from triangulation_pipeline.physics.constants import SPEED_OF_LIGHT_M_PER_NS
from triangulation_pipeline.physics.geometry import Geometry, dilution
from triangulation_pipeline.physics.layout import Layout
from triangulation_pipeline.physics.likeness import is_unlike
from triangulation_pipeline.physics.scenario import ExcessDelay
from triangulation_pipeline.physics.solvers.mixture import mixture_log_density
from triangulation_pipeline.positions.mixtures import MixturePositions

Float = NDArray[np.float64]

LEVELS = (0.5, 0.95)
"""Probabilities of the regions and ellipses."""
ALTERNATIVES = 2
"""Solutions beside the main one that a row has columns for: the model follows three hypotheses."""

COLUMNS = {
    "transmission_id": "name of the transmission, as in the measurements",
    "time": "its time in UTC, ISO 8601 with nine decimals",
    "time_ns": "the same in nanoseconds since 1970, without leap seconds",
    "latitude": "WGS-84 degrees of the place: the peak of the most probable solution",
    "longitude": "of the same",
    "altitude_m": "known or assumed altitude of the transmitter over the ellipsoid, metres",
    "probability": "probability of that solution",
    "mean_latitude": "WGS-84 degrees of the mean of all solutions: the estimate with the least squared error",
    "mean_longitude": "of the same",
    "semi_major_50_m": "half axes of the ellipse that holds half of the main solution, metres",
    "semi_minor_50_m": "of the same",
    "semi_major_95_m": "half axes of the ellipse that holds 95 % of the main solution, metres",
    "semi_minor_95_m": "of the same",
    "orientation_deg": "direction of the long axis, degrees from north to east, 0 to 180",
    **{
        f"alternative_{number}.{name}": f"{text} of another solution, if there is one"
        for number in range(1, ALTERNATIVES + 1)
        for name, text in (
            ("probability", "probability"),
            ("latitude", "WGS-84 degrees"),
            ("longitude", "WGS-84 degrees"),
        )
    },
    "receivers": "receivers that heard the transmission, separated by semicolons",
    "num_times": "how many of them measured an arrival time",
    "hdop": "horizontal dilution of precision of the arrival times at the place; empty with fewer than three",
    "flags": "what speaks against the fix, separated by semicolons; see FLAGS",
    "true_latitude": "WGS-84 degrees of the true place, where it is known",
    "true_longitude": "of the same",
    "error_m": "distance from the true place to the fix, metres",
}
"""Columns of the table of fixes. After them each receiver has two, named as in ``Torino.weight``: see
``RECEIVER_COLUMNS``."""
RECEIVER_COLUMNS = {
    "weight": "probability that its arrival came by the direct path, so that it counts in full",
    "residual_ns": "how much later it arrived than the place explains, nanoseconds",
}

FLAGS = {
    "no_position": "No position could be found, as when arrival times contradict each other by far.",
    "few_times": "Fewer than three receivers measured an arrival time. The place rests mainly on signal levels.",
    "outside_area": "The place is outside the area that the network serves.",
    "ambiguous": "Another place is likely too.",
    "early_arrival": "The signal reached a receiver earlier than this place allows. A clock may be wrong.",
    "unlike_training": "Times or levels are improbable under the conditions that the model was told.",
}
"""What speaks against a fix, and what it means."""

_AMBIGUOUS_PROBABILITY = 0.1
_EARLY_SIGMAS = 5.0
_EMISSION_STEPS = 8
_ELLIPSE_STEPS = 50
_LEAST_WEIGHT = 1e-3
# So many degrees of freedom are a Gaussian, to all digits that count.
_GAUSSIAN_FREEDOM = 1e6
_DECIMALS = {
    **dict.fromkeys(("latitude", "longitude"), 7),
    **dict.fromkeys(("probability", "weight"), 4),
    **dict.fromkeys(("m", "ns", "deg"), 1),
    "hdop": 3,
}


@dataclass(frozen=True)
class Fixes:
    """n located transmissions of one network with r receivers: the columns of the table, the posteriors that regions
    are drawn of, and which receivers heard."""

    columns: Mapping[str, NDArray[Any]]  # (n,) each: COLUMNS, then RECEIVER_COLUMNS of each receiver
    positions: MixturePositions
    heard: NDArray[np.bool_]  # (n, r)

    def __len__(self) -> int:
        return len(self.positions)

    @cached_property
    def table(self) -> pd.DataFrame:
        """The columns as a DataFrame."""
        return pd.DataFrame(self.columns, copy=False)

    def take(self, rows: NDArray[np.bool_] | NDArray[np.integer] | slice) -> Self:
        """The fixes that a mask, indices or a slice picks.

        Parameters
        ----------
        rows : ndarray of bool, shape (n,), ndarray of int, or slice

        Returns
        -------
        Fixes
        """
        picked = {name: values[rows] for name, values in self.columns.items()}
        return type(self)(picked, self.positions.take(rows), self.heard[rows])


def fixes_of(
    positions: MixturePositions,
    layout: Layout,
    measurements: Measurements,
    transmission_id: Sequence[str] | NDArray[np.object_],
    true_lat_lon: Float | None = None,
) -> Fixes:
    """The table of fixes.

    The place of a fix is the peak of its most probable solution. The mode of the whole posterior is another one in a
    few rows, where a narrow peak of little probability is the highest. An ellipse has the shape of the solution's
    covariance, and a size by which it holds its share. The size takes the components as concentric ellipses with tails
    of their own, which is exact for one component. Regions of any shape are drawn by ``regions``.

    The weight of an arrival is the probability that it is direct, and its residual counts from the time of emission
    that is the most likely one at the point, both by the noise of the scenario with its share of delayed paths.

    Parameters
    ----------
    positions : MixturePositions
        n posteriors in the frame of the network.
    layout : Layout
        The network, and the scenario that holds there.
    measurements : Measurements
        The n rows that were located, calibrated.
    transmission_id : sequence of str
        n names.
    true_lat_lon : ndarray, shape (n, 2), optional
        True places, WGS-84 degrees; NaN where they are not known.

    Returns
    -------
    Fixes
        n rows, in the order given. What does not exist is NaN, or an empty text.

    Raises
    ------
    ValueError
        If the arguments have different numbers of rows.
    """
    n = len(positions)
    truth = np.full((n, 2), np.nan) if true_lat_lon is None else true_lat_lon
    for name, given in (("measurements", measurements), ("transmission_id", transmission_id), ("true_lat_lon", truth)):
        if len(given) != n:
            raise ValueError(f"{name} must have {n} rows, as many as positions; it has {len(given)}")
    network, altitude_m = layout.network, measurements.tx_altitude_m
    positions = _within_reach(positions)
    probability, solution_en_m, main, axes = _solutions(positions)
    point_m = main.mode_en_m()
    place_m = np.concatenate([point_m[:, None], positions.en_m[:, None], solution_en_m[:, 1:]], axis=1)
    with np.errstate(invalid="ignore"):
        (lat, mean_lat, *other_lat), (lon, mean_lon, *other_lon) = (
            degrees.T for degrees in network.frame.geodetic(place_m, altitude_m[:, None])
        )
    distance_m, gradient = Geometry(network, altitude_m).ranges_m(point_m)
    weight, residual_ns = _arrivals(measurements, distance_m, layout.scenario.excess_delay)
    with np.errstate(invalid="ignore"):
        hdop, _ = dilution(gradient, measurements.toa_present)
        early = (residual_ns < -_EARLY_SIGMAS * measurements.toa_sigma_ns).any(1)
        located = np.isfinite(point_m).all(1)
        flagged = {
            "no_position": ~located,
            "few_times": measurements.toa_present.sum(1) < LEAST_ARRIVAL_TIMES,
            "outside_area": located & ~network.service_area(layout.scenario.area_margin_m).contains(point_m),
            "ambiguous": (probability[:, 1:] >= _AMBIGUOUS_PROBABILITY).any(1),
            "early_arrival": early,
            "unlike_training": is_unlike(measurements, layout.scenario, distance_m, residual_ns),
        }
    time = np.char.add(np.datetime_as_string(measurements.time_ns.astype("datetime64[ns]"), unit="ns"), "Z")
    heard = measurements.signal_present | measurements.toa_present
    columns: dict[str, NDArray[Any]] = {
        "transmission_id": np.asarray(transmission_id, dtype=object),
        "time": time.astype(object),
        "time_ns": measurements.time_ns,
        "latitude": lat,
        "longitude": lon,
        "altitude_m": altitude_m,
        "probability": probability[:, 0],
        "mean_latitude": mean_lat,
        "mean_longitude": mean_lon,
        "semi_major_50_m": axes["major_m"][:, 0],
        "semi_minor_50_m": axes["minor_m"][:, 0],
        "semi_major_95_m": axes["major_m"][:, 1],
        "semi_minor_95_m": axes["minor_m"][:, 1],
        "orientation_deg": axes["orientation_deg"],
    }
    for number in range(1, ALTERNATIVES + 1):
        columns[f"alternative_{number}.probability"] = probability[:, number]
        columns[f"alternative_{number}.latitude"] = other_lat[number - 1]
        columns[f"alternative_{number}.longitude"] = other_lon[number - 1]
    columns |= {
        "receivers": _joined(heard, [site.name for site in network.sites]),
        "num_times": measurements.toa_present.sum(1),
        "hdop": hdop,
        "flags": _joined(np.stack(list(flagged.values()), axis=1), list(flagged)),
        "true_latitude": truth[:, 0],
        "true_longitude": truth[:, 1],
        "error_m": haversine_m(lat, lon, truth[:, 0], truth[:, 1]),
    }
    for index, site in enumerate(network.sites):
        columns[f"{site.name}.weight"] = weight[:, index]
        columns[f"{site.name}.residual_ns"] = residual_ns[:, index]
    return Fixes(columns, positions, heard)


def write_csv(file: BinaryIO, network: ReceiverNetwork, chunks: Iterable[Fixes]) -> None:
    """Writes fixes as CSV in UTF-8: a line of column names, then one row each, rounded to 1 cm or finer.

    Parameters
    ----------
    file : binary file
        Open for writing.
    network : ReceiverNetwork
        The network that measured them.
    chunks : iterable of Fixes
        They are written one after the other, so memory holds one at a time.
    """
    types = {"transmission_id": pa.string(), "time": pa.string(), "time_ns": pa.int64(), "num_times": pa.int64()}
    types |= dict.fromkeys(("receivers", "flags"), pa.string())
    names = [*COLUMNS, *(f"{site.name}.{name}" for site in network.sites for name in RECEIVER_COLUMNS)]
    schema = pa.schema([(name, types.get(name, pa.float64())) for name in names])
    with pa_csv.CSVWriter(file, schema, write_options=pa_csv.WriteOptions(quoting_style="needed")) as writer:
        for chunk in chunks:
            columns = _rounded(chunk)
            # What does not exist is an empty cell, and not nan.
            writer.write_table(pa.table([pa.array(columns[f.name], f.type, from_pandas=True) for f in schema], schema))


def rows_of(fixes: Fixes) -> Iterator[dict[str, Any]]:
    """The rows of the table as mappings, rounded, without what does not exist."""
    columns = _rounded(fixes)
    for row in zip(*(values.tolist() for values in columns.values()), strict=True):
        yield {name: value for name, value in zip(columns, row, strict=True) if value == value and value != ""}


def _rounded(fixes: Fixes) -> dict[str, NDArray[Any]]:
    """The columns for people and other programs: degrees to 1 cm, metres and nanoseconds to a tenth."""
    return {
        name: values if (places := _decimals(name)) is None else np.round(values, places)
        for name, values in fixes.columns.items()
    }


@cache
def _decimals(column: str) -> int | None:
    """How many decimals a column is written with: by its last word."""
    name = column.rpartition(".")[2]
    return None if name == "time_ns" else _DECIMALS.get(name, _DECIMALS.get(name.rpartition("_")[2]))


def _within_reach(positions: MixturePositions) -> MixturePositions:
    """The posteriors without components beyond ``REACH_M``: arrival times that contradict each other by far lead beyond
    the horizon, where the frame ends."""
    near = np.hypot(*np.moveaxis(positions.component_en_m, -1, 0)) < REACH_M
    if (near | ~positions.exists).all():
        return positions
    log_weight = np.where(near, positions.log_weight, -np.inf)
    return MixturePositions.of_components(log_weight, positions.component_en_m, positions.scale_m2, positions.freedom)


def _solutions(positions: MixturePositions) -> tuple[Float, Float, MixturePositions, dict[str, Float]]:
    """(n, 1 + ALTERNATIVES) probabilities of the solutions, the most probable first, NaN if there are no more;
    (n, 1 + ALTERNATIVES, 2) their places; and of the first its own posterior and its ellipses."""
    found = positions.alternatives()
    n, named = len(positions), found.probability[:, : 1 + ALTERNATIVES]
    probability, en_m = np.full((n, 1 + ALTERNATIVES), np.nan), np.full((n, 1 + ALTERNATIVES, 2), np.nan)
    probability[:, : named.shape[1]] = np.where(named > 0, named, np.nan)
    en_m[:, : named.shape[1]] = found.en_m[:, : 1 + ALTERNATIVES]
    log_weight = np.where(found.of_component == 0, positions.log_weight, -np.inf)
    with np.errstate(divide="ignore", invalid="ignore"):
        log_weight = np.where(log_weight > -np.inf, log_weight - np.log(found.probability[:, :1]), -np.inf)
    components = positions.component_en_m, positions.scale_m2, positions.freedom
    main = MixturePositions(found.en_m[:, 0], found.covariance_m2[:, 0], log_weight, *components)
    return probability, en_m, main, _ellipses(main)


def _ellipses(main: MixturePositions) -> dict[str, Float]:
    """Half axes (n, l), metres, and orientation (n,), degrees, of the ellipses that hold LEVELS of posteriors, with the
    shape of their covariances."""
    covariance_m2 = main.covariance_m2
    ee, nn, en = covariance_m2[:, 0, 0], covariance_m2[:, 1, 1], covariance_m2[:, 0, 1]
    middle, half = (ee + nn) / 2, np.hypot((ee - nn) / 2, en)
    variance = np.stack([middle + half, np.maximum(middle - half, 0.0)], axis=-1)
    orientation_deg = np.degrees(0.5 * np.arctan2(2 * en, nn - ee)) % 180

    weight = np.exp(main.log_weight)
    located = np.flatnonzero(weight.sum(1) > 0)
    # Components that hardly count cost as much as others.
    used = int((weight[located] > _LEAST_WEIGHT).sum(1).max(initial=1))
    picked = np.argsort(-weight[located], axis=1, kind="stable")[:, :used]
    at = located[:, None], picked
    share = weight[at] / weight[at].sum(1, keepdims=True)
    freedom = np.minimum(main.freedom[at], _GAUSSIAN_FREEDOM)
    precision = _inverse(covariance_m2[located])
    apart_m = main.component_en_m[at] - main.en_m[located, None]
    # The squared distance of a component, in units of the solution's covariance, is that of a circular t of this scale:
    # both have the same mean. (1 + q / (scale freedom))^(-freedom / 2) of it lies beyond q.
    offset = np.einsum("nki,nij,nkj->nk", apart_m, precision, apart_m)
    inner = np.einsum("nij,nkij->nk", precision, main.scale_m2[at])
    scale = (inner + offset * (1 - 2 / freedom)) / 2
    # Newton on the logarithm, which is convex and falls: no step overshoots.
    share, scale, freedom = share[:, None], scale[:, None], freedom[:, None]
    log_beyond, q = np.log1p(-np.array(LEVELS)), np.zeros((len(located), len(LEVELS)))
    for _ in range(_ELLIPSE_STEPS):
        base = 1 + q[..., None] / (scale * freedom)
        beyond = share * np.exp(np.log(base) * (freedom / -2))
        total, slope = beyond.sum(-1), (beyond / (2 * scale * base)).sum(-1)
        step = (np.log(total) - log_beyond) * total / slope
        q += step
        if (np.abs(step) <= 1e-3 * q).all():
            break
    squared = np.full((len(main), len(LEVELS)), np.nan)
    squared[located] = q
    with np.errstate(invalid="ignore"):
        return {
            "major_m": np.sqrt(squared * variance[:, :1]),
            "minor_m": np.sqrt(squared * variance[:, 1:]),
            "orientation_deg": orientation_deg,
        }


def _inverse(matrix: Float) -> Float:
    """Inverses of symmetric matrices (..., 2, 2)."""
    ee, nn, en = matrix[..., 0, 0], matrix[..., 1, 1], matrix[..., 0, 1]
    rows = np.stack([np.stack([nn, -en], axis=-1), np.stack([-en, ee], axis=-1)], axis=-2)
    with np.errstate(invalid="ignore", divide="ignore"):
        return rows / (ee * nn - en * en)[..., None, None]


def _arrivals(measurements: Measurements, distance_m: Float, delay: ExcessDelay) -> tuple[Float, Float]:
    """(n, r) probability that each arrival is direct, and its residual, ns, by the most likely time of emission; NaN
    without an arrival time or without a position."""
    present = measurements.toa_present & np.isfinite(distance_m)
    sigma_ns = np.where(present, measurements.toa_sigma_ns, 1.0).astype(np.float64)
    residual_ns = np.where(present, measurements.toa_ns - distance_m / SPEED_OF_LIGHT_M_PER_NS, np.inf)
    count = present.sum(1)
    # From the lower median, because delays are late; each step is one of expectation maximisation.
    lower = np.take_along_axis(np.sort(residual_ns, axis=1), np.maximum(count - 1, 0)[:, None] // 2, 1)
    with np.errstate(invalid="ignore"):
        residual_ns = np.where(present, residual_ns - lower, 0.0)
    curvature = np.where(present, sigma_ns**-2.0, 0.0)
    total = np.where(count > 0, curvature.sum(1), 1.0)
    for _ in range(_EMISSION_STEPS if delay.probability > 0 else 1):
        _, slope = mixture_log_density(residual_ns, sigma_ns, delay.probability, delay.mean_ns)
        step_ns = np.where(present, -slope, 0.0).sum(1) / total
        residual_ns = np.where(present, residual_ns - step_ns[:, None], 0.0)
    log_density, _ = mixture_log_density(residual_ns, sigma_ns, delay.probability, delay.mean_ns)
    log_direct, _ = mixture_log_density(residual_ns, sigma_ns, 0.0, delay.mean_ns)
    direct = np.exp(log_direct + np.log1p(-delay.probability) - log_density)
    return np.where(present, direct, np.nan), np.where(present, residual_ns, np.nan)


def _joined(mask: NDArray[np.bool_], names: Sequence[str]) -> NDArray[np.object_]:
    """(n,) the names that a mask (n, m) picks, separated by semicolons; made once for each mask that occurs."""
    packed = np.packbits(mask, axis=1)
    key = packed.view(np.dtype((np.void, packed.shape[1]))).ravel()
    _, first, which = np.unique(key, return_index=True, return_inverse=True)
    texts = ["; ".join(name for name, picked in zip(names, mask[row], strict=True) if picked) for row in first]
    return np.array([*texts, ""], dtype=object)[which]
