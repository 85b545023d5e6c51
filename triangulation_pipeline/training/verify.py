"""Is a checkpoint that was read back the model that was trained?"""

import numpy as np

from triangulation_pipeline.model.inputs import locator_inputs
from triangulation_pipeline.model.predict import predict
from triangulation_pipeline.physics.geometry import haversine_m
from triangulation_pipeline.samples import SampleBatch
from triangulation_pipeline.training.checkpoint import Checkpoint
from triangulation_pipeline.training.metrics import rmse_m

# Sums round differently on another device or thread count.
RELATIVE_TOLERANCE = 1e-3


def fault(checkpoint: Checkpoint, val: SampleBatch) -> str | None:
    """None, or one sentence on what is wrong: weights that are not finite, or a validation RMSE, predicted anew by the
    reloaded model, that is not the one its metrics claim."""
    if bad := checkpoint.non_finite():
        return f"weights are not finite: {', '.join(bad)}"
    rows = val.take(~val.is_calibration)
    prediction = predict(checkpoint.locator(), locator_inputs(rows))
    lat, lon = checkpoint.spec.network.frame.geodetic(prediction.en_m, checkpoint.spec.tx_height_m)
    found, claimed = rmse_m(haversine_m(lat, lon, rows.tx_lat, rows.tx_lon)), checkpoint.metrics["val_rmse_m"]
    if found is None or claimed is None or not np.isclose(found, claimed, rtol=RELATIVE_TOLERANCE, atol=0):
        return f"val_rmse_m of epoch {checkpoint.epoch} is recorded as {claimed}, the reloaded model gives {found}"
    return None
