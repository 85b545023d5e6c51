"""Fixes for tests: rows of the simulator with posteriors around the truth."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import numpy as np

from triangulation_pipeline.formats.fixes import Fixes, fixes_of
from triangulation_pipeline.network import NORTH_WEST_ITALY, ReceiverNetwork
from triangulation_pipeline.physics.dataset_spec import DatasetSpec
from triangulation_pipeline.physics.layout import Layout
from triangulation_pipeline.physics.scenario import Scenario
from triangulation_pipeline.physics.simulator import simulate
from triangulation_pipeline.positions.mixtures import MixturePositions
from triangulation_pipeline.samples import Samples

LAYOUT = Layout(NORTH_WEST_ITALY, Scenario())
EAST, NORTH = np.eye(2)
# What a name may hold to break out of a page or a document.
HOSTILE = (
    '</script><script>document.title="broken"</script><img src=x onerror=document.title="broken">]]> {{data}} "; &\x01'
)


@cache
def samples(rows: int = 40) -> Samples:
    """Simulated transmissions of the default network, a second apart."""
    return simulate(DatasetSpec(LAYOUT.network, LAYOUT.scenario, num_samples=rows, seed=3))


def mixture(
    weight: Sequence[float], centre_m: np.ndarray, sigma_m: Sequence[float], freedom: float = 5.0
) -> MixturePositions:
    """The same components for each row: (n, k, 2) centres, and k circular scales."""
    n, k = centre_m.shape[:2]
    scale_m2 = np.square(sigma_m)[:, None, None] * np.eye(2)
    return MixturePositions.of_components(
        np.tile(np.log(weight), (n, 1)), centre_m, np.tile(scale_m2, (n, 1, 1, 1)), np.full((n, k), freedom)
    )


def fixes(
    rows: int = 40, layout: Layout = LAYOUT, transmission_id: Sequence[str] | None = None, truth: bool = True
) -> Fixes:
    """Two solutions each, 8 km apart, of 70 % and 30 %; the first is 30 m from the truth. The third row has none."""
    measured = samples(rows)
    truth_m = measured.tx_en_m(LAYOUT.network.frame)
    centre_m = np.stack([truth_m + 30 * NORTH, truth_m + 8000 * EAST + 30 * NORTH], axis=1)
    positions = mixture([0.7, 0.3], centre_m, [60.0, 60.0])
    log_weight = positions.log_weight.copy()
    log_weight[2] = -np.inf
    positions = MixturePositions.of_components(log_weight, centre_m, positions.scale_m2, positions.freedom)
    lat, lon = layout.network.frame.geodetic(truth_m, measured.tx_altitude_m)
    known = np.stack([lat, lon], axis=-1)
    known[1] = np.nan
    ids = [f"tx-{i}" for i in range(rows)] if transmission_id is None else transmission_id
    return fixes_of(positions, layout, measured, ids, known if truth else None)


def moved(lat: float, lon: float) -> Layout:
    """The default network at another place of the earth, with the same geometry to some per mille."""
    old = LAYOUT.network.frame
    sites = tuple(
        site.model_copy(
            update={
                "lat": site.lat - old.lat + lat,
                "lon": (lon + (site.lon - old.lon) * np.cos(np.radians(old.lat)) / np.cos(np.radians(lat)) + 180) % 360
                - 180,
            }
        )
        for site in LAYOUT.network.sites
    )
    return replace(LAYOUT, network=ReceiverNetwork(name="moved", sites=sites))
