"""The synthetic dataset: a function of network, scenario, seed, number of samples and generator version.

Chunks are independent of each other, so they may be made in any order and in any process.
"""

import hashlib
import json
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from triangulation_pipeline.network import ReceiverNetwork
from triangulation_pipeline.physics.constants import SPEED_OF_LIGHT_M_PER_NS
from triangulation_pipeline.physics.geometry import (
    Geometry,
    crlb_m,
    dilution,
    signal_strength_information,
    time_difference_information,
    toa_weight,
)
from triangulation_pipeline.physics.propagation import (
    distance_range_km,
    knife_edge_loss_db,
    knife_edge_parameter,
    noise_floor_dbm,
    path_loss_function,
    path_loss_slope_db,
)
from triangulation_pipeline.physics.scenario import Features, Scenario
from triangulation_pipeline.physics.timing import toa_sigma_ns
from triangulation_pipeline.samples import SampleBatch, Split, sample_ids

# Raised with every change of the rows of equal specs: part of a dataset's identity, and of assets' code versions.
GENERATOR_VERSION = 1
CHUNK_SIZE = 8192
_MAX_CANDIDATES = 64 * CHUNK_SIZE
_EMISSION_WINDOW_NS = 1e6
_DATASET_NAMESPACE = uuid.UUID("6c1ad1f0-5f5b-5d0e-9a52-5b6f6f0f9a3e")


@dataclass(frozen=True)
class DatasetSpec:
    """What identifies a dataset. Raises ValueError where the parts contradict each other."""

    network: ReceiverNetwork
    scenario: Scenario
    num_samples: int
    seed: int

    def __post_init__(self) -> None:
        if self.num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, got {self.num_samples}")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must be 0 to 2^63 - 1, got {self.seed}")
        path_loss_function(self.scenario)
        if self.scenario.min_detections > len(self.network.sites):
            raise ValueError(
                f"min_detections ({self.scenario.min_detections}) must not exceed the network's "
                f"{len(self.network.sites)} sites"
            )

    def _identity(self) -> dict[str, object]:
        return {
            "generator_version": GENERATOR_VERSION,
            "network_digest": self.network.digest,
            "scenario": self.scenario.model_dump(mode="json"),
            "seed": self.seed,
        }

    @cached_property
    def sample_namespace(self) -> uuid.UUID:
        """Namespace of the sample ids: the identity without the count, so a longer dataset keeps them."""
        return uuid.uuid5(_DATASET_NAMESPACE, json.dumps(self._identity(), sort_keys=True))

    @cached_property
    def dataset_id(self) -> str:
        """The identity as a UUID."""
        return str(uuid.uuid5(self.sample_namespace, f"{self.num_samples} samples"))

    def description(self) -> dict[str, object]:
        """The identity in full, as stored with the dataset."""
        return self._identity() | {"num_samples": self.num_samples, "network": self.network.model_dump(mode="json")}

    @property
    def num_chunks(self) -> int:
        """How many chunks make the dataset."""
        return -(-self.num_samples // CHUNK_SIZE)


@dataclass(frozen=True)
class SiteConstants:
    """What is fixed for each site whatever the dataset, (r,): gain, clock bias, oscillator error."""

    gain_offset_db: NDArray[np.float64]
    toa_bias_ns: NDArray[np.float64]
    frequency_error_ppm: NDArray[np.float64]


@dataclass(frozen=True)
class Chunk:
    """Accepted samples, and how many candidates it took."""

    batch: SampleBatch
    candidates: int
    rejected_few_detections: int
    rejected_path_loss_range: int


def site_constants(network: ReceiverNetwork, scenario: Scenario) -> SiteConstants:
    """Draws keyed by network digest and site name: they belong to the site, not to a dataset. A measured
    ``gain_offset_db`` of the network file takes the place of the draw."""
    standard = np.array(
        [
            np.random.Generator(
                np.random.Philox(
                    key=np.frombuffer(hashlib.sha256(f"{network.digest}/{site.name}".encode()).digest()[:16], "<u8")
                )
            ).standard_normal(3)
            for site in network.sites
        ]
    )
    drawn_db = standard[:, 0] * scenario.gain_offset_sigma_db
    measured_db = np.array([np.nan if s.gain_offset_db is None else s.gain_offset_db for s in network.sites])
    return SiteConstants(
        gain_offset_db=np.where(np.isnan(measured_db), drawn_db, measured_db),
        toa_bias_ns=standard[:, 1] * scenario.site_bias_sigma_ns,
        frequency_error_ppm=standard[:, 2] * scenario.rx_frequency_error_ppm,
    )


def simulate(spec: DatasetSpec, chunks: Iterable[int] | None = None) -> Iterator[Chunk]:
    """The dataset's chunks, in the order asked for (all, in index order, by default)."""
    for chunk in range(spec.num_chunks) if chunks is None else chunks:
        yield simulate_chunk(spec, chunk)


def simulate_chunk(spec: DatasetSpec, chunk: int) -> Chunk:
    """Samples ``chunk * CHUNK_SIZE`` onwards.

    The last chunk is drawn whole and cut, so that a longer dataset begins with the same samples. Raises ValueError when
    a chunk needs more than 64 candidates a sample.
    """
    rng = np.random.Generator(np.random.Philox(key=np.array([spec.seed, chunk], np.uint64)))
    rows = min(CHUNK_SIZE, spec.num_samples - chunk * CHUNK_SIZE)
    parts: list[dict[str, NDArray]] = []
    accepted = drawn = few_before = range_before = 0
    few = out_of_range = np.zeros(0, np.int64)
    candidates = np.zeros(0, np.int64)
    while accepted < CHUNK_SIZE:
        if drawn >= _MAX_CANDIDATES:
            raise ValueError(
                f"the scenario rejects too many transmitters: {accepted} of {drawn} candidates accepted "
                f"({few_before} heard by fewer than min_detections = {spec.scenario.min_detections} receivers, "
                f"{range_before} outside the range of path_loss {spec.scenario.path_loss.value}); "
                + (
                    "take another path_loss or a smaller network"
                    if range_before > few_before
                    else "lower min_detections or area_margin_km, or raise tx_power_w"
                )
            )
        rate = accepted / drawn if drawn else 1.0
        size = int(min((CHUNK_SIZE - accepted) / max(rate, 1 / 16) * 1.05 + 64, 4 * CHUNK_SIZE))
        columns, enough, in_range = _draw(rng, size, spec)
        good = enough & in_range
        parts.append({name: column[good] for name, column in columns.items()})
        few = np.append(few, few_before + np.cumsum(in_range & ~enough)[good])
        out_of_range = np.append(out_of_range, range_before + np.cumsum(~in_range)[good])
        candidates = np.append(candidates, drawn + np.flatnonzero(good) + 1)
        few_before += int((in_range & ~enough).sum())
        range_before += int((~in_range).sum())
        accepted += int(good.sum())
        drawn += size
    columns = {name: np.concatenate([part[name] for part in parts])[:rows] for name in parts[0]}
    index = np.arange(chunk * CHUNK_SIZE, chunk * CHUNK_SIZE + rows, dtype=np.int64)
    lat, lon = spec.network.frame.geodetic(columns.pop("en_m"), spec.scenario.tx_height_m)
    return Chunk(
        SampleBatch(
            sample_id=sample_ids(spec.sample_namespace, index.tolist()),
            sample_index=index,
            tx_lat=lat,
            tx_lon=lon,
            frequency_hz=np.full(rows, spec.scenario.frequency_hz, np.int64),
            **columns,
        ),
        candidates=int(candidates[rows - 1]),
        rejected_few_detections=int(few[rows - 1]),
        rejected_path_loss_range=int(out_of_range[rows - 1]),
    )


def _draw(
    rng: np.random.Generator, size: int, spec: DatasetSpec
) -> tuple[dict[str, NDArray], NDArray[np.bool_], NDArray[np.bool_]]:
    """``size`` candidates: their columns, which are heard by enough receivers, which the path-loss model covers."""
    network, scenario = spec.network, spec.scenario
    constants = site_constants(network, scenario)
    area = network.service_area(scenario.area_margin_m)
    links = (size, len(network.sites))

    en_m = rng.uniform((area.east_min_m, area.north_min_m), (area.east_max_m, area.north_max_m), (size, 2))
    power_class = np.searchsorted(np.cumsum(scenario.tx_power_share)[:-1], rng.random(size), side="right")
    tx_power_dbm = np.array(scenario.tx_power_dbm)[power_class]
    distance_m, gradient = Geometry(network, scenario.tx_height_m).ranges_m(en_m)
    low_km, high_km = distance_range_km(scenario.path_loss)
    in_range = np.all((distance_m >= low_km * 1e3) & (distance_m <= high_km * 1e3), axis=1)

    loss_db = path_loss_function(scenario)(distance_m / 1e3)
    if scenario.knife_edge_probability > 0:
        height_m = rng.exponential(scenario.knife_edge_height_m, links)
        edge_db = knife_edge_loss_db(knife_edge_parameter(height_m, distance_m / 1e3, scenario.frequency_mhz))
        loss_db += np.where(rng.random(links) < scenario.knife_edge_probability, edge_db, 0.0)
    level_db = tx_power_dbm + scenario.shadowing_common_db * rng.standard_normal(size)
    floor_dbm = noise_floor_dbm(scenario, [site.noise_figure_db for site in network.sites])
    power_dbm = (
        level_db[:, None]
        + (scenario.tx_antenna_gain_dbi + scenario.rx_antenna_gain_dbi)
        - loss_db
        + scenario.shadowing_link_db * rng.standard_normal(links)
        + constants.gain_offset_db
    )
    snr_db = power_dbm - floor_dbm
    present = snr_db + scenario.detection_width_db * rng.standard_normal(links) > scenario.detection_threshold_db

    tx_error_ppm = scenario.tx_frequency_error_ppm * rng.standard_normal(size)
    offset_hz = scenario.frequency_mhz * (tx_error_ppm[:, None] - constants.frequency_error_ppm)

    timed = present & network.has_timing & (scenario.features is Features.rss_tdoa)
    sigma_ns = toa_sigma_ns(scenario, snr_db)
    toa_ns = (
        rng.uniform(0, _EMISSION_WINDOW_NS, size)[:, None]
        + distance_m / SPEED_OF_LIGHT_M_PER_NS
        + constants.toa_bias_ns
        + sigma_ns * rng.standard_normal(links)
    )
    if scenario.nlos_probability > 0:
        excess_ns = rng.exponential(scenario.nlos_mean_ns, links)
        toa_ns += np.where(rng.random(links) < scenario.nlos_probability, excess_ns, 0.0)

    hdop, gdop = dilution(gradient, timed)
    by_time = time_difference_information(gradient, toa_weight(timed, sigma_ns))
    by_level = signal_strength_information(
        gradient,
        distance_m,
        present,
        path_loss_slope_db(scenario, distance_m / 1e3),
        scenario.shadowing_link_db,
        scenario.common_level_variance_db2,
    )
    bound_m = crlb_m(by_time + by_level)
    columns: dict[str, NDArray] = {
        "en_m": en_m,
        "tx_power_dbm": tx_power_dbm.astype(np.float32),
        "hdop": hdop.astype(np.float32),
        "gdop": gdop.astype(np.float32),
        "crlb_m": bound_m.astype(np.float32),
        "signal_present": present,
        "toa_present": timed,
        "snr_db": np.where(present, snr_db, 0.0).astype(np.float32),
        "power_dbm": np.where(present, power_dbm, floor_dbm).astype(np.float32),
        "frequency_offset_hz": np.where(present, offset_hz, 0.0).astype(np.float32),
        "toa_ns": np.where(timed, toa_ns, 0.0),
        "toa_sigma_ns": np.where(timed, sigma_ns, 0.0).astype(np.float32),
    }
    return columns, np.greater_equal(present.sum(1), scenario.min_detections), in_range


def quality_metrics(
    batch: SampleBatch, chunks: Iterable[Chunk], max_gdop: float = 5.0
) -> dict[str, float | int | None]:
    """What a dataset is like: counts, SNR, detections, geometry and the Cramer-Rao bound. None = no such row."""

    def rounded(value: float | np.floating) -> float:
        return round(float(value), 4)

    chunks = list(chunks)
    snr_db = batch.snr_db[batch.signal_present]
    good = batch.gdop < max_gdop
    bound_m = batch.crlb_m[good]
    gdop = batch.gdop[~np.isnan(batch.gdop)]
    candidates = sum(chunk.candidates for chunk in chunks)
    split = np.bincount(batch.split, minlength=len(Split))
    return {
        "train_count": int(split[Split.train]),
        "val_count": int(split[Split.val]),
        "test_count": int(split[Split.test]),
        "candidates": candidates,
        "rejected_few_detections": sum(chunk.rejected_few_detections for chunk in chunks),
        "rejected_path_loss_range": sum(chunk.rejected_path_loss_range for chunk in chunks),
        "acceptance_rate": rounded(len(batch) / candidates),
        "mean_detections": rounded(batch.num_receivers.mean()),
        "snr_p5_db": rounded(np.percentile(snr_db, 5)),
        "snr_p50_db": rounded(np.percentile(snr_db, 50)),
        "snr_p95_db": rounded(np.percentile(snr_db, 95)),
        "gdop_p50": rounded(np.median(gdop)) if len(gdop) else None,
        "good_geometry_share": rounded(good.mean()),
        "crlb_good_geom_rms_m": rounded(np.sqrt(np.mean(bound_m.astype(float) ** 2))) if len(bound_m) else None,
        "crlb_good_geom_p50_m": rounded(np.median(bound_m)) if len(bound_m) else None,
    }
