import numpy as np
import pytest

from triangulation_pipeline.network import NORTH_WEST_ITALY
from triangulation_pipeline.physics.dataset_spec import DatasetSpec
from triangulation_pipeline.physics.scenario import PRESETS, Preset
from triangulation_pipeline.physics.simulator import simulate
from triangulation_pipeline.physics.solvers.fingerprint import NEIGHBOURS, nearest_fingerprints
from triangulation_pipeline.samples import Samples


@pytest.fixture(scope="module")
def samples() -> Samples:
    return simulate(DatasetSpec(NORTH_WEST_ITALY, PRESETS[Preset.rss], 600, seed=5))


def test_it_is_the_mean_of_the_places_with_the_nearest_levels(samples: Samples) -> None:
    test, known = samples.take(slice(0, 20)), samples.take(slice(20, 600))
    known_en_m = known.tx_en_m(NORTH_WEST_ITALY.frame)
    found = nearest_fingerprints(NORTH_WEST_ITALY, test, known).en_m
    for row in range(20):
        apart_db = np.linalg.norm(known.power_dbm.astype(float) - test.power_dbm[row].astype(float), axis=1)
        np.testing.assert_allclose(found[row], known_en_m[np.argsort(apart_db)[:NEIGHBOURS]].mean(0))


@pytest.mark.parametrize("known", [1, 5])
def test_fewer_known_places_are_all_used(samples: Samples, known: int) -> None:
    few = samples.take(slice(0, known))
    found = nearest_fingerprints(NORTH_WEST_ITALY, samples.take(slice(10, 13)), few).en_m
    np.testing.assert_allclose(found, np.tile(few.tx_en_m(NORTH_WEST_ITALY.frame).mean(0), (3, 1)))
