"""Simulated transmissions: a function of a dataset's spec.

Chunks are independent of each other, so they may be made in any order and in any process.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from triangulation_pipeline.measurements import RECEIVER_DTYPES
from triangulation_pipeline.physics.constants import SPEED_OF_LIGHT_M_PER_NS
from triangulation_pipeline.physics.dataset_spec import CHUNK_SIZE, ROWS_PER_LAYOUT, DatasetSpec
from triangulation_pipeline.physics.geometry import (
    Geometry,
    crlb_m,
    dilution,
    signal_strength_information,
    time_difference_information,
    toa_weight,
)
from triangulation_pipeline.physics.layout import Layout, Layouts
from triangulation_pipeline.physics.propagation import (
    distance_range_km,
    knife_edge_loss_db,
    knife_edge_parameter,
    noise_floor_dbm,
    path_loss_function,
    path_loss_slope_db,
)
from triangulation_pipeline.physics.refraction import slowing
from triangulation_pipeline.physics.scenario import Features, Scenario
from triangulation_pipeline.physics.timing import toa_sigma_ns
from triangulation_pipeline.samples import Samples, sample_ids

Float = NDArray[np.float64]

_MAX_CANDIDATES = 64  # per sample
_EMISSION_WINDOW_NS = 1e6
_RANDOM_STREAMS = 2**63
FIRST_TIME_NS = 946_684_800 * 10**9  # the beginning of 2000: simulated transmissions are one second apart


@dataclass(frozen=True)
class Chunk:
    """Accepted samples, and how many candidates it took."""

    batch: Samples
    candidates: int
    rejected_few_detections: int
    rejected_path_loss_range: int


def simulate(spec: DatasetSpec) -> Samples:
    """Simulates a whole dataset.

    Parameters
    ----------
    spec : DatasetSpec
        Network or random layouts, scenario, number of samples and seed. Equal specs give identical samples.

    Returns
    -------
    Samples
        ``spec.num_samples`` transmissions: what the receivers measured, and the truth.

    Raises
    ------
    ValueError
        If the scenario rejects too many transmitters: more than 64 candidates per sample would be needed.
    """
    return Samples.concatenate([chunk.batch for chunk in simulate_chunks(spec)])


def simulate_chunks(spec: DatasetSpec, chunks: Iterable[int] | None = None) -> Iterator[Chunk]:
    """Simulates a dataset in chunks, which are independent of each other.

    Parameters
    ----------
    spec : DatasetSpec
        Network or random layouts, scenario, number of samples and seed.
    chunks : iterable of int, optional
        Indices of the wanted chunks, in any order; by default all, in the order of their indices.

    Yields
    ------
    Chunk

    Raises
    ------
    ValueError
        If a chunk needs more than 64 candidates per sample.
    """
    for chunk in range(spec.num_chunks) if chunks is None else chunks:
        yield simulate_chunk(spec, chunk)


def simulate_chunk(spec: DatasetSpec, chunk: int) -> Chunk:
    """Simulates the samples from ``chunk * CHUNK_SIZE`` on.

    The last chunk is drawn whole and cut, so that a longer dataset begins with the same samples.

    Parameters
    ----------
    spec : DatasetSpec
        Network or random layouts, scenario, number of samples and seed.
    chunk : int
        Index of the chunk, 0 to ``spec.num_chunks - 1``.

    Returns
    -------
    Chunk
        ``CHUNK_SIZE`` samples, or fewer in the last chunk, and how many candidates they took.

    Raises
    ------
    ValueError
        If the chunk needs more than 64 candidates per sample.
    """
    begin, end = chunk * CHUNK_SIZE, min((chunk + 1) * CHUNK_SIZE, spec.num_samples)
    size = ROWS_PER_LAYOUT if spec.layouts is Layouts.random else CHUNK_SIZE
    pieces = [_piece(spec, first // size, size, min(size, end - first)) for first in range(begin, end, size)]
    return Chunk(
        Samples.concatenate([piece.batch for piece in pieces]),
        candidates=sum(piece.candidates for piece in pieces),
        rejected_few_detections=sum(piece.rejected_few_detections for piece in pieces),
        rejected_path_loss_range=sum(piece.rejected_path_loss_range for piece in pieces),
    )


def _piece(spec: DatasetSpec, number: int, size: int, rows: int) -> Chunk:
    """The first ``rows`` of the samples from ``number * size`` to ``(number + 1) * size``, which one layout hears."""
    # No stream is one of a dataset of the other kind: a model trained on random layouts is judged on own ones.
    stream = number + (_RANDOM_STREAMS if spec.layouts is Layouts.random else 0)
    rng = np.random.Generator(np.random.Philox(key=np.array([spec.seed, stream], np.uint64)))
    index = np.arange(number * size, number * size + rows, dtype=np.int64)
    layout = spec.layout(int(spec.layout_number(index)[0]))
    parts: list[dict[str, NDArray]] = []
    accepted = drawn = few_before = range_before = 0
    few = out_of_range = np.zeros(0, np.int64)
    candidates = np.zeros(0, np.int64)
    while accepted < size:
        if drawn >= _MAX_CANDIDATES * size:
            raise ValueError(_too_few(layout.scenario, accepted, drawn, few_before, range_before))
        rate = accepted / drawn if drawn else 1.0
        wanted = int(min((size - accepted) / max(rate, 1 / 16) * 1.05 + 64, 4 * size))
        columns, enough, in_range = _draw(rng, wanted, layout)
        good = enough & in_range
        parts.append({name: column[good] for name, column in columns.items()})
        few = np.append(few, few_before + np.cumsum(in_range & ~enough)[good])
        out_of_range = np.append(out_of_range, range_before + np.cumsum(~in_range)[good])
        candidates = np.append(candidates, drawn + np.flatnonzero(good) + 1)
        few_before += int((in_range & ~enough).sum())
        range_before += int((~in_range).sum())
        accepted += int(good.sum())
        drawn += wanted
    columns = {name: np.concatenate([part[name] for part in parts])[:rows] for name in parts[0]}
    return Chunk(
        _samples(spec, layout, index, columns),
        candidates=int(candidates[rows - 1]),
        rejected_few_detections=int(few[rows - 1]),
        rejected_path_loss_range=int(out_of_range[rows - 1]),
    )


def _too_few(scenario: Scenario, accepted: int, drawn: int, few: int, out_of_range: int) -> str:
    return (
        f"the scenario rejects too many transmitters: {accepted} of {drawn} candidates accepted "
        f"({few} heard by fewer than min_detections = {scenario.min_detections} receivers, "
        f"{out_of_range} outside the range of path_loss {scenario.path_loss.value}); "
        + (
            "take another path_loss or a smaller network"
            if out_of_range > few
            else "lower min_detections or area_margin_km, or raise tx_power_w"
        )
    )


def _samples(spec: DatasetSpec, layout: Layout, index: NDArray[np.int64], columns: dict[str, NDArray]) -> Samples:
    """What was drawn, with what follows from the place in the dataset and from the scenario."""
    altitude_m = layout.scenario.transmitter_altitude_m
    lat, lon = layout.network.frame.geodetic(columns.pop("en_m"), altitude_m)
    empty = spec.num_sites - len(layout.network.sites)
    columns |= {name: np.pad(columns[name], ((0, 0), (0, empty))) for name in RECEIVER_DTYPES}
    return Samples(
        sample_id=sample_ids(spec.sample_namespace, index.tolist()),
        sample_index=index,
        time_ns=FIRST_TIME_NS + index * 10**9,
        tx_lat=lat,
        tx_lon=lon,
        tx_altitude_m=np.full(len(index), altitude_m),
        frequency_hz=np.full(len(index), layout.scenario.frequency_hz, np.int64),
        **columns,
    )


def _draw(
    rng: np.random.Generator, size: int, layout: Layout
) -> tuple[dict[str, NDArray], NDArray[np.bool_], NDArray[np.bool_]]:
    """``size`` candidates: their columns, which are heard by enough receivers, which the path-loss model covers."""
    network, scenario = layout.network, layout.scenario
    area = network.service_area(scenario.area_margin_m)

    en_m = rng.uniform((area.east_min_m, area.north_min_m), (area.east_max_m, area.north_max_m), (size, 2))
    power_class = np.searchsorted(np.cumsum(scenario.tx_power_share)[:-1], rng.random(size), side="right")
    tx_power_dbm = np.array(scenario.tx_power_dbm)[power_class]
    distance_m, gradient = Geometry(network, scenario.transmitter_altitude_m).ranges_m(en_m)
    low_km, high_km = distance_range_km(scenario.path_loss)
    in_range = np.all((distance_m >= low_km * 1e3) & (distance_m <= high_km * 1e3), axis=1)

    # The order of the draws is part of the generator's version.
    gain_db = np.array([site.gain_offset_db or 0.0 for site in network.sites])
    power_dbm = _received_power_dbm(rng, scenario, tx_power_dbm, distance_m) + gain_db
    floor_dbm = noise_floor_dbm(scenario, [site.noise_figure_db for site in network.sites])
    snr_db = power_dbm - floor_dbm
    width_db = scenario.detection_width_db * rng.standard_normal(distance_m.shape)
    present = snr_db + width_db > scenario.detection_threshold_db
    tx_error_ppm = scenario.tx_frequency_error_ppm * rng.standard_normal(size)
    rx_error_ppm = scenario.rx_frequency_error_ppm * rng.standard_normal(distance_m.shape)
    offset_hz = scenario.frequency_mhz * (tx_error_ppm[:, None] - rx_error_ppm)
    timed = present & network.has_timing & (scenario.features is Features.rss_tdoa)
    sigma_ns = toa_sigma_ns(scenario, snr_db)
    flight_ns = distance_m / SPEED_OF_LIGHT_M_PER_NS
    flight_ns *= 1 + slowing(layout, np.full(size, scenario.transmitter_altitude_m))[:, None]
    toa_ns = _arrival_ns(rng, scenario, flight_ns, sigma_ns)
    columns: dict[str, NDArray] = {
        "en_m": en_m,
        "tx_power_dbm": tx_power_dbm.astype(np.float32),
        **_bounds(scenario, gradient, distance_m, present, timed, sigma_ns),
        "signal_present": present,
        "toa_present": timed,
        "snr_db": np.where(present, snr_db, 0.0).astype(np.float32),
        "power_dbm": np.where(present, power_dbm, floor_dbm).astype(np.float32),
        "frequency_offset_hz": np.where(present, offset_hz, 0.0).astype(np.float32),
        "toa_ns": np.where(timed, toa_ns, 0.0),
        "toa_sigma_ns": np.where(timed, sigma_ns, 0.0).astype(np.float32),
    }
    return columns, np.greater_equal(present.sum(1), scenario.min_detections), in_range


def _received_power_dbm(rng: np.random.Generator, scenario: Scenario, tx_power_dbm: Float, distance_m: Float) -> Float:
    """(n, r) power at each receiver: path loss, obstacles, common and link shadowing, antenna gains, residual gains."""
    n, links = len(distance_m), distance_m.shape
    loss_db = path_loss_function(scenario)(distance_m / 1e3)
    if scenario.knife_edge_probability > 0:
        height_m = rng.exponential(scenario.knife_edge_height_m, links)
        edge_db = knife_edge_loss_db(knife_edge_parameter(height_m, distance_m / 1e3, scenario.frequency_mhz))
        loss_db += np.where(rng.random(links) < scenario.knife_edge_probability, edge_db, 0.0)
    level_db = tx_power_dbm + scenario.shadowing_common_db * rng.standard_normal(n)
    return (
        level_db[:, None]
        + (scenario.tx_antenna_gain_dbi + scenario.rx_antenna_gain_dbi)
        - loss_db
        + scenario.link_level_sigma_db * rng.standard_normal(links)
    )


def _arrival_ns(rng: np.random.Generator, scenario: Scenario, flight_ns: Float, sigma_ns: Float) -> Float:
    """(n, r) arrival times: emission, flight, noise with the residual bias, and the excess delay of some links."""
    n, links = len(flight_ns), flight_ns.shape
    toa_ns = rng.uniform(0, _EMISSION_WINDOW_NS, n)[:, None] + flight_ns + sigma_ns * rng.standard_normal(links)
    if scenario.nlos_probability > 0:
        excess_ns = rng.exponential(scenario.nlos_mean_ns, links)
        toa_ns += np.where(rng.random(links) < scenario.nlos_probability, excess_ns, 0.0)
    return toa_ns


def _bounds(
    scenario: Scenario,
    gradient: Float,
    distance_m: Float,
    present: NDArray[np.bool_],
    timed: NDArray[np.bool_],
    sigma_ns: Float,
) -> dict[str, NDArray]:
    """Dilution of precision by the arrival times, and the Cramér-Rao bound by arrival times and levels, (n,) each."""
    hdop, gdop = dilution(gradient, timed)
    by_time = time_difference_information(gradient, toa_weight(timed, sigma_ns))
    by_level = signal_strength_information(
        gradient,
        distance_m,
        present,
        path_loss_slope_db(scenario, distance_m / 1e3),
        scenario.link_level_sigma_db,
        scenario.common_level_variance_db2,
    )
    return {
        "hdop": hdop.astype(np.float32),
        "gdop": gdop.astype(np.float32),
        "crlb_m": crlb_m(by_time + by_level).astype(np.float32),
    }
