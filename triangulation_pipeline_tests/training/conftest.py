"""Small trainings that the tests of this folder share."""

import itertools
from collections.abc import Iterator
from typing import Any, Protocol

import pytest
import torch
from torch import Tensor

from triangulation_pipeline.model.checkpoint import Checkpoint, DatasetReference
from triangulation_pipeline.model.locator import Located
from triangulation_pipeline.model.losses import locator_loss
from triangulation_pipeline.network import NORTH_WEST_ITALY
from triangulation_pipeline.physics.scenario import Scenario
from triangulation_pipeline.samples import Samples, Split
from triangulation_pipeline.training import trainer as trainer_module
from triangulation_pipeline.training.config import Accelerator, TrainingConfig
from triangulation_pipeline.training.trainer import Trainer

from ..model.helpers import DEFAULT, samples

DATASET = DatasetReference(dataset_id="a", sha256="b")
BASE: dict[str, Any] = {"epochs": 3, "warmup_epochs": 1, "batch_size": 128, "accelerator": Accelerator.cpu}
# Some 420 rows of training, 60 of validation and 30 of calibration.
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


def splits(n: int = 2000, scenario: Scenario = DEFAULT) -> tuple[Samples, Samples]:
    batch = samples(n, scenario)
    return batch.take(batch.split == Split.train), batch.take(batch.split == Split.val)


def trainer_of(
    n: int = 2000,
    scenario: Scenario = DEFAULT,
    dataset: DatasetReference = DATASET,
    parent: Checkpoint | None = None,
    **settings: Any,
) -> Trainer:
    """Of the training and validation parts of n samples."""
    config = TrainingConfig(**BASE | settings)
    return Trainer(config.locator_spec(NORTH_WEST_ITALY, DEFAULT), config, *splits(n, scenario), dataset, parent)


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

        def loss(located: Located, target_m: Tensor) -> Tensor:
            if torch.is_grad_enabled():
                return locator_loss(located, target_m)
            return torch.full((len(target_m),), next(coming), dtype=torch.float64)

        monkeypatch.setattr(trainer_module, "locator_loss", loss)

    return give
