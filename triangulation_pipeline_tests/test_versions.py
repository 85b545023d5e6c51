"""The versions that stand for arithmetic, in datasets' identities, digests of weights and assets' code versions: who
changes what is computed here has to raise one. Machines round differently; a change of the arithmetic is larger.

The digests are exact: where they stay, nothing moved, not by a bit. They were the same with and without the newer
instructions of one machine, and by all of OpenBLAS's kernels for it."""

import platform

import numpy as np
import pytest

from triangulation_pipeline.defs.config import SyntheticDatasetConfig
from triangulation_pipeline.model.predict import predict
from triangulation_pipeline.model.spec import LOCATOR_VERSION, Architecture
from triangulation_pipeline.network import NETWORK_VERSION, NORTH_WEST_ITALY
from triangulation_pipeline.physics.dataset_spec import GENERATOR_VERSION, DatasetSpec
from triangulation_pipeline.physics.geometry import Geometry
from triangulation_pipeline.physics.layout import LAYOUTS_VERSION, Layouts, random_layout
from triangulation_pipeline.physics.scenario import PRESETS, Preset
from triangulation_pipeline.physics.simulator import simulate, simulate_chunks
from triangulation_pipeline.physics.solvers import SOLVERS_VERSION
from triangulation_pipeline.physics.solvers.gauss_newton import Loss, gauss_newton
from triangulation_pipeline.samples import SPLIT_VERSION, Split, samples_digest
from triangulation_pipeline.training.config import TRAINING_VERSION
from triangulation_pipeline_tests.model.helpers import DEFAULT, HOME, fresh, poked, samples, spec_for
from triangulation_pipeline_tests.training.conftest import own, run, trainer_of

NETWORKS = {1: "491d2d57dc5ce699d5b1809bc38cd17a8b7008cc270c2731e1fb652f05b64fa8"}
# Latitude, longitude, SNR at the first site and bound of the first rows.
GENERATED = {
    2: [
        (44.5606, 7.05256, 16.3818, 99.6016),
        (45.029, 7.27835, 77.3007, 21.1137),
        (44.6185, 8.19842, 18.8917, 21.6482),
        (45.6367, 9.25501, 0.0, 178.899),
    ]
}
# Identity and SHA-256 of datasets of the default network: the default one, and 1,000 samples of each preset, seed 0.
DEFAULT_DATASET = {
    2: (
        "04ac5be0-9e8a-56ef-937d-d9fc2f537564",
        "9ac5696370e35ece981b04208f7690df5afec1c33dc32546c0319f8968df0701",
    )
}
SMALL_DATASETS: dict[int, dict[Preset, str]] = {
    2: {
        Preset.default: "c8913233e0fc3eabcbc640ef9a8c8d9fb7ab73349b4dc7d6f7c053e5f4b23975",
        Preset.line_of_sight: "9968b75b05e40e5ee55e158dbf751b474d7abb581091ac8d1ed7647296e06a8f",
        Preset.valley: "7c7b4c4bee12bd42f84263815c45ecaa007c447ce6c22171e09b5034e3558d3b",
        Preset.urban: "01d57398beed8e6a5710b33c8cd46e78c05ac1d3488ccd6192d5248cbda9792c",
        Preset.handheld: "45ac228a9aae5bde49b9d6c3f57a003f33537b061bab8cfcc4f36f7349952eb6",
        Preset.wideband: "da4216b1a4349e6177595f4cdc645162d5faff3b803ac782886c971d78c91e42",
        Preset.rss: "502d15ca11e296009aee0e55ecbee76a76139b206cf937c4b394d36e24e5f83b",
        Preset.uncalibrated: "b8669c3e63dba5c5ce1c3d041835ffc3ca21ab593117ba04fa91c30ffc12beea",
    }
}
# Number of sites, clock noise and path-loss exponent of the first random layouts; and identity and SHA-256 of 1,000
# samples over random layouts, seed 0.
LAYOUTS = {1: [(4, 643.105, 2.96717), (15, 359.834, 4.6841), (15, 550.138, 4.10304)]}
RANDOM_DATASET = {
    (2, 1): (
        "cf2b07dc-d24d-53f3-8bc8-4e5405879142",
        "34abcde49d94d2779b5c4f38c0435d1696c980409de679e607c485072d9e563a",
    )
}
SPLIT = {1: [38, 5, 7]}
# East and north of the first rows by each loss.
SOLVED = {
    2: [
        *(-90833.5, -41108.7, -72376.8, 10701.8, 158.476, -35351.3, 82473.5, 78252.7),
        *(-90817.0, -41102.5, -72376.6, 10702.2, 152.303, -35357.2, 70074.0, 62151.9),
    ]
}
# East, north, and the variances of both.
PREDICTED = {
    (3, Architecture.triangulation): [
        (-90809.8, -41100.4, 40444.7, 22246.3),
        (-72374.1, 10705.1, 1044.96, 1643.43),
        (156.743, -35352.9, 792.56, 1262.6),
        (82508.9, 78284.2, 105688.0, 161458.0),
    ],
    (3, Architecture.regression): [
        (-88971.5, -39050.2, 29161800.0, 70984100.0),
        (-73105.0, 11201.7, 761535.0, 7703910.0),
        (543.751, -34993.8, 9832680.0, 111726000.0),
        (81882.9, 77634.2, 12790300.0, 30922900.0),
    ],
}
# Training and validation loss of three epochs.
TRAINED = {3: [9.16404, 9.11446, 9.10669, 9.0885, 9.0834, 9.08542]}


def test_network() -> None:
    assert NORTH_WEST_ITALY.digest == NETWORKS[NETWORK_VERSION]


def test_generator() -> None:
    batch = samples(50)
    rows = np.column_stack([batch.tx_lat, batch.tx_lon, batch.snr_db[:, 0], batch.crlb_m])[:4]
    assert rows == pytest.approx(np.array(GENERATED[GENERATOR_VERSION]), rel=1e-4)


exact = pytest.mark.skipif(
    platform.machine() not in {"x86_64", "AMD64"}, reason="the digests are of x86-64; other processors round otherwise"
)


@exact
def test_the_default_dataset() -> None:
    spec = SyntheticDatasetConfig().spec(NORTH_WEST_ITALY)
    found = (spec.dataset_id, samples_digest(chunk.batch for chunk in simulate_chunks(spec)))
    assert found == DEFAULT_DATASET[GENERATOR_VERSION]


@exact
@pytest.mark.parametrize("preset", list(Preset))
def test_small_datasets(preset: Preset) -> None:
    assert samples_digest([samples(1000, PRESETS[preset])]) == SMALL_DATASETS[GENERATOR_VERSION][preset]


def test_layouts() -> None:
    drawn = [random_layout(DEFAULT, 0, number) for number in range(3)]
    found = [(len(one.network.sites), one.scenario.clock_sigma_ns, one.scenario.path_loss_exponent) for one in drawn]
    assert np.array(found) == pytest.approx(np.array(LAYOUTS[LAYOUTS_VERSION]), rel=1e-4)


@exact
def test_a_dataset_over_random_layouts() -> None:
    spec = DatasetSpec(None, DEFAULT, 1000, 0, Layouts.random)
    assert (spec.dataset_id, samples_digest([simulate(spec)])) == RANDOM_DATASET[GENERATOR_VERSION, LAYOUTS_VERSION]


def test_split() -> None:
    split = samples(50).split
    assert [int((split == part).sum()) for part in Split] == SPLIT[SPLIT_VERSION]


def test_solvers() -> None:
    batch = samples(4096).take(slice(0, 4))
    geometry = Geometry(NORTH_WEST_ITALY, DEFAULT.tx_height_m)
    found = np.concatenate([gauss_newton(geometry, batch, loss).en_m.ravel() for loss in Loss])
    assert found == pytest.approx(SOLVED[SOLVERS_VERSION], rel=1e-3)


@pytest.mark.parametrize("architecture", list(Architecture))
def test_locator(architecture: Architecture) -> None:
    found = predict(poked(fresh(spec_for(architecture))), HOME, samples(50))
    rows = np.column_stack([found.en_m, found.covariance_m2[:, 0, 0], found.covariance_m2[:, 1, 1]])[:4]
    # In float32 the variance of a row that hears few is not known better.
    assert rows == pytest.approx(np.array(PREDICTED[LOCATOR_VERSION, architecture]), rel=3e-3)


def test_training() -> None:
    trainer = run(trainer_of())
    losses = [loss for metrics in trainer.history for loss in (metrics.train_loss, metrics.val_loss)]
    assert losses == pytest.approx(TRAINED[TRAINING_VERSION], rel=1e-3)


@pytest.mark.parametrize("architecture", list(Architecture))
def test_a_second_training_gives_the_same_weights(architecture: Architecture) -> None:
    """Bit for bit: this is what a change that moves nothing is held against, before and after, on one machine."""
    settings = {"model_architecture": architecture, "learning_rate": 3e-4}
    first, second = (run(trainer_of(own(1000), **settings)) for _ in range(2))
    assert first.best_checkpoint().weights_digest == second.best_checkpoint().weights_digest
    other = run(trainer_of(own(1000), seed=1, **settings))
    assert other.best_checkpoint().weights_digest != first.best_checkpoint().weights_digest
