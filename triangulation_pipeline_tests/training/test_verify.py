from dataclasses import replace

import pytest
import torch

from triangulation_pipeline.model.checkpoint import Checkpoint
from triangulation_pipeline.model.spec import Architecture
from triangulation_pipeline.training.metrics import VALIDATION_METRICS
from triangulation_pipeline.training.verify import fault

from .conftest import FEW, own, run, splits, trainer_of

DATASET = own(FEW)


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    trainer = run(trainer_of(DATASET, model_architecture=Architecture.regression))
    return trainer.last_checkpoint()


def fault_of(checkpoint: Checkpoint) -> str | None:
    return fault(checkpoint, DATASET, splits(DATASET)[1])


@pytest.mark.parametrize("name", VALIDATION_METRICS)
def test_each_number_that_the_model_does_not_give_is_named(checkpoint: Checkpoint, name: str) -> None:
    value = checkpoint.metrics[name]
    assert value is not None

    def told(claimed: float | None) -> str | None:
        return fault_of(replace(checkpoint, metrics=checkpoint.metrics | {name: claimed}))

    # Rounding of another device is no fault.
    assert [told(value * factor) for factor in (0.995, 1.0, 1.005)] == [None] * 3
    for claimed in (0.97 * value, 1.03 * value):
        assert str(told(claimed)).startswith(f"{name} of epoch 3 is recorded as {claimed}, the reloaded model gives ")
    assert str(told(None)).startswith(f"{name} of epoch 3 is recorded as None, the reloaded model gives ")


def test_a_metric_without_rows_is_none_in_both() -> None:
    trainer = run(trainer_of(DATASET, model_architecture=Architecture.regression, max_gdop=0.01), epochs=1)
    checkpoint = trainer.last_checkpoint()
    name = "val_rmse_good_geom_m"
    assert checkpoint.metrics[name] is None
    assert fault_of(checkpoint) is None
    claimed = replace(checkpoint, metrics=checkpoint.metrics | {name: 5.0})
    assert fault_of(claimed) == f"{name} of epoch 1 is recorded as 5.0, the reloaded model gives None"


def test_other_weights_are_found(checkpoint: Checkpoint) -> None:
    assert fault_of(checkpoint) is None
    other = {name: tensor * 1.1 for name, tensor in checkpoint.weights.items()}
    assert "the reloaded model gives" in str(fault_of(replace(checkpoint, weights=other)))


def test_weights_that_are_no_numbers_are_found(checkpoint: Checkpoint) -> None:
    for name, tensor in checkpoint.weights.items():
        broken = checkpoint.weights | {name: torch.full_like(tensor, float("nan"))}
        assert fault_of(replace(checkpoint, weights=broken)) == f"weights are not finite: {name}"


def test_predictions_that_are_no_numbers_are_found(checkpoint: Checkpoint) -> None:
    """Of finite weights whose sums are not."""
    wild = {name: torch.full_like(tensor, 3e38) for name, tensor in checkpoint.weights.items()}
    assert fault_of(replace(checkpoint, weights=wild)) == (
        "epoch 3 predicts positions or covariances that are not finite numbers; the training has diverged"
    )
