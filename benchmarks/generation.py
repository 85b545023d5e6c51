"""How many samples a second the simulator draws, and where its time goes."""

import time
from collections.abc import Callable
from statistics import median

import numpy as np

from triangulation_pipeline.network import NORTH_WEST_ITALY
from triangulation_pipeline.physics.dataset_spec import CHUNK_SIZE, DatasetSpec
from triangulation_pipeline.physics.geometry import Geometry, dilution
from triangulation_pipeline.physics.scenario import PRESETS, Preset
from triangulation_pipeline.physics.simulator import simulate_chunks
from triangulation_pipeline.samples import sample_ids

CHUNKS = 8
REPEATS = 3


def seconds(work: Callable[[], object]) -> float:
    """Median duration of a few runs."""
    durations = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        work()
        durations.append(time.perf_counter() - started)
    return median(durations)


def measure() -> dict[str, str]:
    """Name and value of each number, ready to print."""
    samples = CHUNKS * CHUNK_SIZE
    spec = DatasetSpec(NORTH_WEST_ITALY, PRESETS[Preset.default], samples, seed=0)
    area = NORTH_WEST_ITALY.service_area(spec.scenario.area_margin_m)
    en_m = np.random.default_rng(0).uniform(
        (area.east_min_m, area.north_min_m), (area.east_max_m, area.north_max_m), (samples, 2)
    )
    everywhere = np.ones((samples, len(NORTH_WEST_ITALY.sites)), np.bool_)

    def geometry() -> None:
        _, gradient = Geometry(NORTH_WEST_ITALY, spec.scenario.tx_height_m).ranges_m(en_m)
        dilution(gradient, everywhere)

    whole = seconds(lambda: [len(chunk.batch) for chunk in simulate_chunks(spec)])
    ids = seconds(lambda: sample_ids(spec.sample_namespace, range(samples)))
    return {
        f"generation, {samples:,} samples of `default`, samples/s": f"{samples / whole:,.0f}",
        "  share spent on sample ids": f"{ids / whole:.0%}",
        "  share spent on ranges and dilution of precision": f"{seconds(geometry) / whole:.0%}",
    }
