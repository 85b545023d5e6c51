"""Whether a checkpoint that was read back is the model that was trained."""

import math

import torch

from triangulation_pipeline.model.checkpoint import Checkpoint
from triangulation_pipeline.physics.dataset_spec import DatasetSpec
from triangulation_pipeline.samples import Samples
from triangulation_pipeline.training.metrics import VALIDATION_METRICS
from triangulation_pipeline.training.rows import PreparedRows
from triangulation_pipeline.training.validation import validate

# Sums round differently on another device, and a row may fall on the other side of the edge of a region.
RELATIVE_TOLERANCE = 1e-2


def fault(checkpoint: Checkpoint, dataset: DatasetSpec, val: Samples) -> str | None:
    """None, or one sentence on what is wrong: weights or predictions that are not finite numbers, or validation metrics
    of the reloaded model, on the same rows of its dataset, that differ from those in the checkpoint."""
    if bad := checkpoint.non_finite():
        return f"weights are not finite: {', '.join(bad)}"
    model = checkpoint.locator()
    found = validate(model, PreparedRows.of(model, dataset, val, torch.device("cpu")), checkpoint.config["max_gdop"])
    if not all(value is None or math.isfinite(value) for value in found.values()):
        return (
            f"epoch {checkpoint.epoch} predicts positions or covariances that are not finite numbers; the training has "
            "diverged"
        )
    for name in VALIDATION_METRICS:
        value, claimed = found[name], checkpoint.metrics[name]
        if value is None or claimed is None:
            same = value is claimed
        else:
            same = math.isclose(value, claimed, rel_tol=RELATIVE_TOLERANCE)
        if not same:
            return f"{name} of epoch {checkpoint.epoch} is recorded as {claimed}, the reloaded model gives {value}"
    return None
