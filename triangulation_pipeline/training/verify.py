"""Is a checkpoint that was read back the model that was trained?"""

import numpy as np

from triangulation_pipeline.frame import haversine_m
from triangulation_pipeline.model.inputs import locator_inputs
from triangulation_pipeline.model.predict import predict
from triangulation_pipeline.samples import SampleBatch
from triangulation_pipeline.training.checkpoint import Checkpoint
from triangulation_pipeline.training.metrics import coverage, distance_statistics

# Sums round differently on another device, and a row may fall on the other side of an ellipse.
RELATIVE_TOLERANCE = 1e-2


def fault(checkpoint: Checkpoint, val: SampleBatch) -> str | None:
    """None, or one sentence on what is wrong: weights that are not finite, or validation errors, NEES or coverage,
    predicted anew by the reloaded model, that are not those its metrics claim."""
    if bad := checkpoint.non_finite():
        return f"weights are not finite: {', '.join(bad)}"
    rows, spec = val.take(~val.is_calibration), checkpoint.spec
    prediction = predict(checkpoint.locator(), locator_inputs(rows))
    lat, lon = spec.network.frame.geodetic(prediction.en_m, spec.tx_height_m)
    truth_en_m = spec.network.frame.enu_m(rows.tx_lat, rows.tx_lon, np.full(len(rows), spec.tx_height_m))[:, :2]
    statistics = distance_statistics(haversine_m(lat, lon, rows.tx_lat, rows.tx_lon))
    try:
        nees = prediction.nees(truth_en_m)
    except np.linalg.LinAlgError:
        return f"epoch {checkpoint.epoch} predicts error ellipses without extent; the training has diverged"
    found = {
        "val_rmse_m": statistics["rmse_m"],
        "val_distance_p50_m": statistics["p50_m"],
        "val_distance_p95_m": statistics["p95_m"],
        "val_nees": float(np.mean(nees)),
        "val_coverage_68": coverage(nees, 0.683),
        "val_coverage_95": coverage(nees, 0.95),
    }
    for name, value in found.items():
        claimed = checkpoint.metrics[name]
        if value is None or claimed is None or not np.isclose(value, claimed, rtol=RELATIVE_TOLERANCE, atol=0):
            return f"{name} of epoch {checkpoint.epoch} is recorded as {claimed}, the reloaded model gives {value}"
    return None
