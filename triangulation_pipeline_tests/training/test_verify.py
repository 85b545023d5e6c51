from dataclasses import replace

import pytest
import torch

from triangulation_pipeline.model.checkpoint import Checkpoint
from triangulation_pipeline.training.trainer import Trainer
from triangulation_pipeline.training.verify import fault

from .conftest import splits


@pytest.fixture
def checkpoint(trained: Trainer) -> Checkpoint:
    return trained.last_checkpoint()


@pytest.mark.parametrize(
    "name",
    ["val_rmse_m", "val_distance_p50_m", "val_distance_p95_m", "val_nees", "val_coverage_68", "val_coverage_95"],
)
def test_each_number_that_the_model_does_not_give_is_named(checkpoint: Checkpoint, name: str) -> None:
    _, val = splits()
    value = checkpoint.metrics[name]
    assert value is not None

    def told(claimed: float | None) -> str | None:
        return fault(replace(checkpoint, metrics=checkpoint.metrics | {name: claimed}), val)

    # Rounding of another device is no fault.
    assert [told(value * factor) for factor in (0.995, 1.0, 1.005)] == [None] * 3
    for claimed in (0.97 * value, 1.03 * value):
        assert str(told(claimed)).startswith(f"{name} of epoch 3 is recorded as {claimed}, the reloaded model gives ")
    assert str(told(None)).startswith(f"{name} of epoch 3 is recorded as None, the reloaded model gives ")


def test_other_weights_are_found(checkpoint: Checkpoint) -> None:
    _, val = splits()
    assert fault(checkpoint, val) is None
    other = {name: tensor + 0.1 for name, tensor in checkpoint.weights.items()}
    assert "the reloaded model gives" in str(fault(replace(checkpoint, weights=other), val))
    # Also where the positions are right and the covariance is not.
    scaled = checkpoint.weights | {"covariance_scale": checkpoint.weights["covariance_scale"] * 2}
    assert "val_nees" in str(fault(replace(checkpoint, weights=scaled), val))


def test_weights_that_are_no_numbers_are_found(checkpoint: Checkpoint) -> None:
    _, val = splits()
    for name, tensor in checkpoint.weights.items():
        broken = checkpoint.weights | {name: torch.full_like(tensor, float("nan"))}
        assert fault(replace(checkpoint, weights=broken), val) == f"weights are not finite: {name}"


def test_ellipses_without_extent_are_found(checkpoint: Checkpoint) -> None:
    _, val = splits()
    flat = checkpoint.weights | {"covariance_scale": torch.tensor(0.0)}
    assert fault(replace(checkpoint, weights=flat), val) == (
        "epoch 3 predicts error ellipses without extent; the training has diverged"
    )


def test_predictions_that_are_no_numbers_are_found(checkpoint: Checkpoint) -> None:
    """Of finite weights whose sums are not."""
    _, val = splits()
    largest = {"uncertainty.2.bias": 3e38, "rounds.1.read.bias": 3e38}
    for name, value in largest.items():
        wild = checkpoint.weights | {name: torch.full_like(checkpoint.weights[name], value)}
        assert fault(replace(checkpoint, weights=wild), val) == (
            "epoch 3 predicts positions or covariances that are not finite numbers; the training has diverged"
        )


def test_the_rows_of_the_calibration_say_nothing(checkpoint: Checkpoint) -> None:
    _, val = splits()
    assert fault(checkpoint, val.take(~val.is_calibration)) is None
    assert fault(checkpoint, val) is None
