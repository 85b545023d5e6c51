"""Whether a checkpoint that was read back is the model that was trained."""

import numpy as np

from triangulation_pipeline.model.checkpoint import Checkpoint
from triangulation_pipeline.model.predict import locate
from triangulation_pipeline.samples import Samples
from triangulation_pipeline.training.metrics import position_metrics

# Sums round differently on another device, and a row may fall on the other side of an ellipse.
RELATIVE_TOLERANCE = 1e-2


def fault(checkpoint: Checkpoint, val: Samples) -> str | None:
    """None, or one sentence on what is wrong: weights or predictions that are not finite numbers, or validation errors,
    NEES or coverage of the reloaded model that differ from the metrics in the checkpoint."""
    if bad := checkpoint.non_finite():
        return f"weights are not finite: {', '.join(bad)}"
    rows, frame = val.take(~val.is_calibration), checkpoint.spec.network.frame
    predicted = locate(checkpoint, rows)
    distance_m = predicted.error_m(frame, rows.tx_altitude_m, rows.tx_lat, rows.tx_lon)
    nees = predicted.nees(rows.tx_en_m(frame))
    if not (np.isfinite(predicted.en_m).all() and np.isfinite(predicted.covariance_m2).all()):
        return (
            f"epoch {checkpoint.epoch} predicts positions or covariances that are not finite numbers; the training has "
            "diverged"
        )
    if np.isnan(nees).any():
        return f"epoch {checkpoint.epoch} predicts error ellipses without extent; the training has diverged"
    for name, value in position_metrics(distance_m, nees).items():
        claimed = checkpoint.metrics[name]
        if value is None or claimed is None or not np.isclose(value, claimed, rtol=RELATIVE_TOLERANCE, atol=0):
            return f"{name} of epoch {checkpoint.epoch} is recorded as {claimed}, the reloaded model gives {value}"
    return None
