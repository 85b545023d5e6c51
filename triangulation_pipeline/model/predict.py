"""Posteriors of many rows, without gradients."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch

from triangulation_pipeline.calibration import SiteCalibration, calibrated
from triangulation_pipeline.formats.fixes import Fixes, fixes_of
from triangulation_pipeline.formats.recording import Recording
from triangulation_pipeline.measurements import Measurements
from triangulation_pipeline.model.checkpoint import Checkpoint
from triangulation_pipeline.model.inputs import LocatorInputs
from triangulation_pipeline.model.locator import Locator, Mixture
from triangulation_pipeline.ordered import in_order
from triangulation_pipeline.physics.dataset_spec import DatasetSpec
from triangulation_pipeline.physics.layout import Layout
from triangulation_pipeline.positions.mixtures import MixturePositions
from triangulation_pipeline.samples import Samples

CHUNK_ROWS = 4096


def locate(
    checkpoint: Checkpoint,
    measurements: Measurements,
    layout: Layout | None = None,
    calibration: SiteCalibration | None = None,
) -> MixturePositions:
    """Where the transmitters are, by the model of a checkpoint.

    Parameters
    ----------
    checkpoint : Checkpoint
        The model. It serves any network.
    measurements : Measurements
        n transmissions as they were measured, with the receivers in the order of the sites of the network.
    layout : Layout, optional
        The network that measured them, and the scenario that holds there. By default those that the model was trained
        for.
    calibration : SiteCalibration, optional
        What is known of the sites. It is taken off the measurements first, and levels count for less where it leaves
        gains uncertain. By default what the network file says.

    Returns
    -------
    MixturePositions
        n posteriors, in the frame of the network.

    Raises
    ------
    ValueError
        If no layout is given and the model was trained on random layouts, or if the measurements are of another number
        of receivers.
    """
    layout = checkpoint.spec.layout if layout is None else layout
    if layout is None:
        raise ValueError("the model was trained on random layouts: give locate the layout that measured the rows")
    sites = len(layout.network.sites)
    if measurements.num_sites != sites:
        raise ValueError(
            f"the network {layout.network.name!r} has {sites} sites, the measurements are of "
            f"{measurements.num_sites} receivers"
        )
    calibration = SiteCalibration.of_network(layout.network) if calibration is None else calibration
    return predict(checkpoint.served, calibration.conditions(layout), calibration.apply(layout, measurements))


def locate_recordings(
    checkpoint: Checkpoint,
    recordings: Iterable[Recording],
    layout: Layout,
    calibration: SiteCalibration,
    workers: int = 1,
) -> Iterator[Fixes]:
    """Fixes of all that was recorded, block by block: the memory that it takes does not grow.

    With one worker each block is located when it is asked for. With more, as many blocks are located at once, in
    threads, while the next ones are read; the fixes are the same to the bit, in the same order. PyTorch then works
    best with one thread of its own (``torch.set_num_threads``).

    Parameters
    ----------
    checkpoint : Checkpoint
        The model. It serves any network.
    recordings : iterable of Recording
        Blocks as ``read_measurements`` gives them.
    layout : Layout
        The network that measured them, and the scenario that holds there.
    calibration : SiteCalibration
        What is known of the sites: ``SiteCalibration.prior`` if nothing was measured.
    workers : int, optional
        How many blocks are located at once.

    Yields
    ------
    Fixes
        Of each block that has transmissions.
    """
    model = checkpoint.served
    layout = calibration.conditions(layout)

    def fixes(recording: Recording) -> Fixes:
        measurements = calibration.apply(layout, recording.measurements)
        truth = np.stack([recording.latitude, recording.longitude], axis=-1)
        return fixes_of(predict(model, layout, measurements), layout, measurements, recording.transmission_id, truth)

    return in_order(fixes, (recording for recording in recordings if len(recording)), workers)


def locate_samples(checkpoint: Checkpoint, dataset: DatasetSpec, samples: Samples) -> MixturePositions:
    """Where the transmitters of samples are, each by the layout that measured it and what its network file knows of the
    sites.

    Parameters
    ----------
    checkpoint : Checkpoint
        The model.
    dataset : DatasetSpec
        The dataset of the samples.
    samples : Samples
        n rows of it, one or more, as they were measured.

    Returns
    -------
    MixturePositions
        n posteriors, each in the frame of its own network.
    """
    model, found, places = checkpoint.served, [], []
    for layout, rows in dataset.by_layout(samples):
        found.append(predict(model, layout, calibrated(layout, samples.take(rows))))
        places.append(rows)
    return MixturePositions.concatenate(found).take(np.argsort(np.concatenate(places)))


def predict(model: Locator, layout: Layout, measurements: Measurements) -> MixturePositions:
    """The model's answer for calibrated measurements of a layout, in evaluation mode."""
    return predicted(model, model.prepare(layout, measurements))


@torch.inference_mode()
def predicted(model: Locator, inputs: LocatorInputs) -> MixturePositions:
    """The model's answer for prepared rows, in evaluation mode."""
    if model.training:
        model.eval()
    device = next(model.parameters()).device
    if len(inputs) <= CHUNK_ROWS:
        return positions_of([model(inputs.to(device))], torch.arange(len(inputs)))
    order = torch.argsort(inputs.num_hearing_B, stable=True)
    parts = []
    for rows in order.split(CHUNK_ROWS):
        part = inputs.take(rows)
        parts.append(model(part.narrowed(max(1, int(part.num_hearing_B.max()))).to(device)))
    return positions_of(parts, order)


def positions_of(mixtures: Sequence[Mixture], order: torch.Tensor) -> MixturePositions:
    """The posteriors of all rows of the mixtures, as positions in double precision. The first row is put in the place
    ``order[0]``, and so on."""
    places = order.split([len(mixture.log_weight_BC) for mixture in mixtures])
    widest = max(mixture.log_weight_BC.shape[1] for mixture in mixtures)

    def column(name: str, padding: float) -> np.ndarray:
        parts = [getattr(mixture, name).cpu().numpy() for mixture in mixtures]
        whole = np.full((len(order), widest, *parts[0].shape[2:]), padding)
        for rows, part in zip(places, parts, strict=True):
            whole[rows.numpy(), : part.shape[1]] = part
        return whole

    first, cross, second = np.moveaxis(column("scale_tril_m_BC3", 1.0), -1, 0)
    scale_m2 = np.stack([first**2, first * cross, first * cross, cross**2 + second**2], -1)
    return MixturePositions.of_components(
        column("log_weight_BC", -np.inf),
        column("mean_m_BC2", 0.0),
        scale_m2.reshape(*first.shape, 2, 2),
        column("freedom_BC", 4.0),
    )
