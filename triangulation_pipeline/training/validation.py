"""What a model achieves on prepared rows, by the names of the epoch's metrics."""

from typing import Any

import torch

from triangulation_pipeline.model.locator import Locator
from triangulation_pipeline.model.losses import locator_loss
from triangulation_pipeline.model.predict import positions_of
from triangulation_pipeline.positions.statistics import rmse_m
from triangulation_pipeline.training.metrics import position_metrics
from triangulation_pipeline.training.rows import PreparedRows

VALIDATED_AT_ONCE = 2048


@torch.no_grad()
def validate(model: Locator, rows: PreparedRows, max_gdop: float) -> dict[str, Any]:
    """The validation metrics of a model, which is in evaluation mode afterwards. They are NaN if its answers are no
    numbers."""
    model.eval()
    order = rows.inputs.num_hearing_B.argsort(stable=True)
    loss, mixtures = 0.0, []
    for picked in order.split(VALIDATED_AT_ONCE):
        inputs, target_m_B2 = rows.batch(picked)
        mixtures.append(model(inputs))
        loss += float(locator_loss(mixtures[-1], target_m_B2).double().sum())
    found, truth_m = positions_of(mixtures, order.cpu()), rows.target_m_B2.double().cpu().numpy()
    distance_m = rows.error_m(found.en_m)
    return {
        "val_loss": loss / len(rows),
        "val_rmse_good_geom_m": rmse_m(distance_m[rows.gdop < max_gdop]),
        **position_metrics(distance_m, found.nees(truth_m), found.content_at(truth_m)),
    }
