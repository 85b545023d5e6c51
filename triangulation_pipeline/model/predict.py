"""Positions and covariances of many rows, without gradients."""

import torch

from triangulation_pipeline.model.inputs import LocatorInputs
from triangulation_pipeline.model.locator import Locator
from triangulation_pipeline.positions import Positions

CHUNK_ROWS = 8192


@torch.no_grad()
def predict(model: Locator, inputs: LocatorInputs, initial_m_B2: torch.Tensor | None = None) -> Positions:
    """The model's answer in evaluation mode; ``initial_m_B2`` saves the search for the initial fix if it is known."""
    model.eval()
    initial_m_B2 = model.initial_fix(inputs) if initial_m_B2 is None else initial_m_B2
    parts = [
        model(inputs.take(slice(i, i + CHUNK_ROWS)), initial_m_B2[i : i + CHUNK_ROWS])
        for i in range(0, max(len(inputs), 1), CHUNK_ROWS)
    ]
    tril = torch.cat([part.scale_tril_m_B22 for part in parts]).double()
    return Positions(torch.cat([part.en_m_B2 for part in parts]).double().cpu().numpy(), (tril @ tril.mT).cpu().numpy())
