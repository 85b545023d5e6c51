"""Positions and covariances of many rows, without gradients."""

import numpy as np
import torch

from triangulation_pipeline.measurements import Measurements
from triangulation_pipeline.model.checkpoint import Checkpoint
from triangulation_pipeline.model.inputs import LocatorInputs, locator_inputs
from triangulation_pipeline.model.locator import Locator
from triangulation_pipeline.model.losses import STUDENT_T_FREEDOM
from triangulation_pipeline.positions import MixturePositions

CHUNK_ROWS = 8192


def locate(checkpoint: Checkpoint, measurements: Measurements) -> MixturePositions:
    """Where the transmitters are, by the model of a checkpoint.

    Parameters
    ----------
    checkpoint : Checkpoint
        The model. It is for one network, and for transmitters at one altitude.
    measurements : Measurements
        n transmissions, with the receivers in the order of the sites of that network.

    Returns
    -------
    Positions
        n positions with the covariances of their errors, in the frame of ``checkpoint.spec.network``.

    Raises
    ------
    ValueError
        If the measurements are of another number of receivers, or of a transmitter at another altitude.
    """
    spec = checkpoint.spec
    if measurements.num_sites != len(spec.network.sites):
        raise ValueError(
            f"the model is for the {len(spec.network.sites)} sites of {spec.network.name!r}, the measurements are of "
            f"{measurements.num_sites} receivers"
        )
    if (other := measurements.tx_altitude_m != spec.tx_altitude_m).any():
        raise ValueError(
            f"the model is for transmitters at an altitude of {spec.tx_altitude_m:g} m, the measurements have one at "
            f"{measurements.tx_altitude_m[other][0]:g} m; train a model with this tx_altitude_m"
        )
    return predict(checkpoint.locator(), locator_inputs(measurements))


@torch.no_grad()
def predict(model: Locator, inputs: LocatorInputs, initial_m_B2: torch.Tensor | None = None) -> MixturePositions:
    """The model's answer in evaluation mode; ``initial_m_B2`` saves the search for the initial fix if it is known. The
    densities are those that the loss trains: Student's t for solved rows, Gaussian for regressed ones."""
    model.eval()
    initial_m_B2 = model.initial_fix(inputs) if initial_m_B2 is None else initial_m_B2
    parts = [
        model(inputs.take(slice(i, i + CHUNK_ROWS)), initial_m_B2[i : i + CHUNK_ROWS])
        for i in range(0, max(len(inputs), 1), CHUNK_ROWS)
    ]
    tril = torch.cat([part.scale_tril_m_B22 for part in parts]).double()
    solved = torch.cat([part.solved_B for part in parts]).cpu().numpy()
    freedom = np.where(solved, STUDENT_T_FREEDOM, np.inf)
    return MixturePositions.of_components(
        np.zeros((len(solved), 1)),
        torch.cat([part.en_m_B2 for part in parts]).double().cpu().numpy()[:, None],
        (tril @ tril.mT).cpu().numpy()[:, None],
        freedom[:, None],
    )
