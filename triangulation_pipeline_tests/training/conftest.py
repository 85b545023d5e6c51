"""Small trainings that the tests of this folder share."""

import itertools
from collections.abc import Iterator
from functools import cache
from typing import Any, Protocol

import pytest
import torch
from torch import Tensor

from triangulation_pipeline.model.checkpoint import Checkpoint, DatasetReference
from triangulation_pipeline.network import NORTH_WEST_ITALY
from triangulation_pipeline.physics.dataset_spec import DatasetSpec
from triangulation_pipeline.physics.layout import Layouts
from triangulation_pipeline.physics.scenario import PRESETS, Preset, Scenario
from triangulation_pipeline.physics.simulator import simulate
from triangulation_pipeline.samples import Samples, Split
from triangulation_pipeline.training import validation
from triangulation_pipeline.training.config import Accelerator, TrainingConfig
from triangulation_pipeline.training.trainer import Trainer

DEFAULT = PRESETS[Preset.default]
STORED = DatasetReference(dataset_id="a", sha256="b")
BASE: dict[str, Any] = {
    "epochs": 3,
    "warmup_epochs": 1,
    "batch_size": 128,
    "parent_model_id": "random",
    "accelerator": Accelerator.cpu,
}
# Some 420 rows of training and 90 of validation.
FEW = 600


class Script(Protocol):
    def __call__(self, *val_losses: float) -> None: ...


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The small tensors of these tests gain nothing by a second core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def own(n: int = 2000, scenario: Scenario = DEFAULT) -> DatasetSpec:
    """n samples of the default network."""
    return DatasetSpec(NORTH_WEST_ITALY, scenario, n, seed=0)


def random(n: int = 1500) -> DatasetSpec:
    """n samples of random networks: some of three of them."""
    return DatasetSpec(None, DEFAULT, n, seed=0, layouts=Layouts.random)


@cache
def splits(dataset: DatasetSpec) -> tuple[Samples, Samples]:
    """The training and validation parts."""
    samples = simulate(dataset)
    return samples.take(samples.split == Split.train), samples.take(samples.split == Split.val)


def trainer_of(
    dataset: DatasetSpec | None = None,
    stored: DatasetReference = STORED,
    parent: Checkpoint | None = None,
    **settings: Any,
) -> Trainer:
    """On a dataset, by default 2,000 samples of the default network."""
    config, dataset = TrainingConfig(**BASE | settings), own() if dataset is None else dataset
    return Trainer(config.locator_spec(dataset), config, dataset, *splits(dataset), stored, parent)


def run(trainer: Trainer, epochs: int | None = None) -> Trainer:
    """The same after all its epochs, or so many."""
    for metrics in trainer.epochs():
        if metrics.epoch == epochs:
            break
    return trainer


def same(mine: dict[str, Tensor], others: dict[str, Tensor]) -> bool:
    return mine.keys() == others.keys() and all(torch.equal(mine[name], others[name]) for name in mine)


@pytest.fixture(scope="session")
def trained() -> Trainer:
    """Three epochs on 2,000 samples; not to be changed."""
    torch.set_num_threads(1)
    return run(trainer_of())


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    """Makes the validations give these losses, one after the other, and then the last for ever."""

    def give(*val_losses: float) -> None:
        coming = itertools.chain(val_losses, itertools.repeat(val_losses[-1]))
        monkeypatch.setattr(
            validation,
            "locator_loss",
            lambda mixture, target_m: torch.full((len(target_m),), next(coming), dtype=torch.float64),
        )

    return give
