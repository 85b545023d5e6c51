"""Positions and covariances of many rows, without gradients."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from triangulation_pipeline.model.inputs import LocatorInputs
from triangulation_pipeline.model.locator import Locator

CHUNK_ROWS = 8192


@dataclass(frozen=True)
class Prediction:
    """(n, 2) east and north in metres, and (n, 2, 2) covariances in square metres, float64."""

    en_m: NDArray[np.float64]
    covariance_m2: NDArray[np.float64]

    def nees(self, target_en_m: NDArray[np.float64]) -> NDArray[np.float64]:
        """(n,) squared error in units of the covariance: mean 2 if that is right."""
        error = target_en_m - self.en_m
        return np.einsum("ni,ni->n", error, np.linalg.solve(self.covariance_m2, error[..., None])[..., 0])


@torch.no_grad()
def predict(model: Locator, inputs: LocatorInputs, start_m_B2: torch.Tensor | None = None) -> Prediction:
    """The model's answer in evaluation mode; ``start_m_B2`` saves the start's search where it is known."""
    model.eval()
    start_m_B2 = model.start(inputs) if start_m_B2 is None else start_m_B2
    parts = [
        model(inputs.take(slice(i, i + CHUNK_ROWS)), start_m_B2[i : i + CHUNK_ROWS])
        for i in range(0, max(len(inputs), 1), CHUNK_ROWS)
    ]
    tril = torch.cat([part.scale_tril_m_B22 for part in parts]).double()
    return Prediction(
        torch.cat([part.en_m_B2 for part in parts]).double().cpu().numpy(), (tril @ tril.mT).cpu().numpy()
    )
