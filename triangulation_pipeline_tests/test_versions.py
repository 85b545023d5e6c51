"""The versions that stand for arithmetic, in datasets' identities, digests of weights and assets' code versions: who
changes what is computed here has to raise one. Machines round differently; a change of the arithmetic is larger.

The digests are exact: where they stay, nothing moved, not by a bit. They were the same with and without the newer
instructions of one machine, and by all of OpenBLAS's kernels for it."""

import platform

import numpy as np
import pytest
from triangulation_pipeline.physics.solvers.site_biases import fit_site_biases_ns

from triangulation_pipeline.defs.config import SyntheticDatasetConfig
from triangulation_pipeline.model.inputs import locator_inputs
from triangulation_pipeline.model.predict import predict
from triangulation_pipeline.model.spec import LOCATOR_VERSION, Architecture
from triangulation_pipeline.network import NETWORK_VERSION, NORTH_WEST_ITALY
from triangulation_pipeline.physics.dataset_spec import GENERATOR_VERSION
from triangulation_pipeline.physics.geometry import Geometry
from triangulation_pipeline.physics.scenario import PRESETS, Preset
from triangulation_pipeline.physics.simulator import simulate_chunks
from triangulation_pipeline.physics.solvers import SOLVERS_VERSION
from triangulation_pipeline.physics.solvers.gauss_newton import Loss, gauss_newton
from triangulation_pipeline.samples import SPLIT_VERSION, Split, samples_digest
from triangulation_pipeline.training.config import TRAINING_VERSION
from triangulation_pipeline_tests.model.helpers import DEFAULT, fresh, poked, samples, spec_for
from triangulation_pipeline_tests.training.conftest import run, trainer_of

NETWORKS = {1: "491d2d57dc5ce699d5b1809bc38cd17a8b7008cc270c2731e1fb652f05b64fa8"}
# Latitude, longitude, SNR at the first site and bound of the first rows.
GENERATED = {
    1: [
        (44.5606, 7.05256, 17.1779, 98.6045),
        (45.029, 7.27835, 78.0226, 20.8573),
        (44.6185, 8.19842, 19.7041, 22.2521),
        (45.6367, 9.25501, 0.0, 179.834),
    ]
}
# Identity and SHA-256 of datasets of the default network: the default one, and 1,000 samples of each preset, seed 0.
DEFAULT_DATASET = {
    1: (
        "b507ff7b-aa60-5b3a-9bda-98a82ac5421e",
        "e9430728315549aa4450fdf1b70d65fe294a45c82869d3af56232312fde396c3",
    )
}
SMALL_DATASETS: dict[int, dict[Preset, str]] = {
    1: {
        Preset.default: "2440564be3c40d30122c35fe7b7c3e2ddb306a89f641d51cfe3c04bd17d0ce77",
        Preset.valley: "57eaad175444c43516a6ca49f75c1312da3377a8d646d94920777b1e424fc484",
        Preset.line_of_sight: "117728b8b2eeb420229b1143ff59b81f22539c2bd50472bd7a5b133bcc551ba9",
        Preset.rss: "fab927402a7965d273660117c8257ed9dff8990bbdf636a505e733f56d21b780",
    }
}
SPLIT = {1: [33, 9, 8]}
# Site biases, then east and north of the first rows by each loss.
SOLVED = {
    1: [
        *(-34.4844, 19.6726, 25.4155, 56.151, -8.87186, -59.6721, 1.78933),
        *(-90816.0, -41087.2, -72384.7, 10912.0, 145.535, -35351.5, 82454.4, 78309.1),
        *(-90816.0, -41087.2, -72391.7, 10943.8, 145.535, -35351.5, 70113.8, 62505.9),
    ]
}
# East, north, and the variances of both.
PREDICTED = {
    (1, Architecture.triangulation): [
        (-90754.6, -41047.3, 27944.9, 18217.7),
        (-72369.0, 10828.4, 1111.7, 3106.74),
        (143.785, -35350.3, 230.819, 1074.63),
        (82434.1, 78276.7, 15451.4, 45115.5),
    ],
    (1, Architecture.regression): [
        (4658.06, 16799.3, 1.37439e10, 1.01542e9),
        (-22824.8, 29493.8, 9.63115e9, 1.93447e9),
        (1108.55, 30742.2, 1.23534e10, 1.58933e9),
        (21792.1, 7737.3, 1.61512e10, 1.47357e9),
    ],
}
# Training and validation loss of three epochs, and the scale of the covariances.
TRAINED = {1: [6.56368, 6.17194, 6.5581, 6.17207, 6.54683, 6.17397, 16.6498]}


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


def test_split() -> None:
    split = samples(50).split
    assert [int((split == part).sum()) for part in Split] == SPLIT[SPLIT_VERSION]


def test_solvers() -> None:
    batch = samples(4096)
    bias_ns = fit_site_biases_ns(Geometry(NORTH_WEST_ITALY, DEFAULT.tx_height_m), batch)
    fixes = [
        gauss_newton(Geometry(NORTH_WEST_ITALY, DEFAULT.tx_height_m), batch.take(slice(0, 4)), bias_ns, loss).en_m
        for loss in Loss
    ]
    found = [*bias_ns, *np.concatenate(fixes).ravel()]
    assert found == pytest.approx(SOLVED[SOLVERS_VERSION], rel=1e-3)


@pytest.mark.parametrize("architecture", list(Architecture))
def test_locator(architecture: Architecture) -> None:
    found = predict(poked(fresh(spec_for(architecture))), locator_inputs(samples(50)))
    rows = np.column_stack([found.en_m, found.covariance_m2[:, 0, 0], found.covariance_m2[:, 1, 1]])[:4]
    assert rows == pytest.approx(np.array(PREDICTED[LOCATOR_VERSION, architecture]), rel=1e-3)


def test_training() -> None:
    trainer = run(trainer_of())
    losses = [loss for metrics in trainer.history for loss in (metrics.train_loss, metrics.val_loss)]
    assert [*losses, trainer.calibrate()] == pytest.approx(TRAINED[TRAINING_VERSION], rel=1e-3)


@pytest.mark.parametrize("architecture", list(Architecture))
def test_a_second_training_gives_the_same_weights(architecture: Architecture) -> None:
    """Bit for bit: this is what a change that moves nothing is held against, before and after, on one machine."""
    settings = {"model_architecture": architecture, "dropout_rate": 0.1}
    first, second = (run(trainer_of(1000, **settings)) for _ in range(2))
    assert first.calibrate() == second.calibrate()
    assert first.best_checkpoint().weights_digest == second.best_checkpoint().weights_digest
    other = run(trainer_of(1000, seed=1, **settings))
    assert other.best_checkpoint().weights_digest != first.best_checkpoint().weights_digest
