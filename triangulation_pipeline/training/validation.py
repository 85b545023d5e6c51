"""What a model achieves on prepared rows, by the names of the epoch's metrics."""

from typing import Any

import numpy as np
import torch

from triangulation_pipeline.model.locator import Locator
from triangulation_pipeline.model.losses import locator_loss
from triangulation_pipeline.model.predict import positions_of
from triangulation_pipeline.positions import rmse_m
from triangulation_pipeline.training.metrics import position_metrics
from triangulation_pipeline.training.rows import PreparedRows

VALIDATED_AT_ONCE = 2048


@torch.no_grad()
def validate(model: Locator, rows: PreparedRows, max_gdop: float) -> dict[str, Any]:
    """The validation metrics of a model, which is in evaluation mode afterwards. They are NaN if its answers are no
    numbers."""
    model.eval()
    loss = 0.0
    en_m_B2 = torch.empty_like(rows.target_m_B2)
    nees, content = np.empty(len(rows)), np.empty(len(rows))
    for picked in rows.inputs.num_hearing_B.argsort(stable=True).split(VALIDATED_AT_ONCE):
        inputs, target_m_B2 = rows.batch(picked)
        mixture = model(inputs)
        loss += float(locator_loss(mixture, target_m_B2, inputs).double().sum())
        found, truth_m = positions_of(mixture), target_m_B2.double().cpu().numpy()
        en_m_B2[picked] = torch.as_tensor(found.en_m, dtype=torch.float32).to(en_m_B2.device)
        indices = picked.cpu().numpy()
        nees[indices] = found.nees(truth_m)
        content[indices] = found.content_at(truth_m)
    distance_m = rows.error_m(en_m_B2)
    return {
        "val_loss": loss / len(rows),
        "val_rmse_good_geom_m": rmse_m(distance_m[rows.gdop < max_gdop]),
        **position_metrics(distance_m, nees, content),
    }
