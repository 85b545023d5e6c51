"""Checkpoints as bytes: plain tensors, numbers and strings only, so that reading one never executes anything."""

import hashlib
import io
import json
import warnings
import zipfile
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from triangulation_pipeline.formats.columns import PLAIN, ColumnMapping
from triangulation_pipeline.model.architectures import build_locator
from triangulation_pipeline.model.locator import Locator
from triangulation_pipeline.model.spec import LOCATOR_VERSION, LocatorSpec
from triangulation_pipeline.network import ReceiverNetwork
from triangulation_pipeline.physics.layout import Layout
from triangulation_pipeline.physics.scenario import Scenario
from triangulation_pipeline.validation import brief, one_sentence, shown

if TYPE_CHECKING:
    import pandas as pd

    from triangulation_pipeline.calibration import SiteCalibration

FORMAT = "triangulation-checkpoint/3"
# Of locators of version 1, which learned the clock bias and the gain of each site.
FORMER_FORMATS = ("triangulation-checkpoint/1", "triangulation-checkpoint/2")


class DatasetReference(BaseModel):
    """A stored dataset: its id, and the SHA-256 digest of its samples."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset_id: str
    sha256: str


@dataclass(frozen=True)
class Checkpoint:
    """One set of weights and where it comes from.

    ``metrics`` are those of ``epoch`` (from 1), by name, and ``config`` is the JSON form of the settings, as the room
    ``training`` defines both. ``dataset`` is None if the rows were not those of a stored dataset.
    """

    spec: LocatorSpec
    weights: dict[str, torch.Tensor]
    epoch: int
    metrics: dict[str, float | int | None]
    config: dict[str, Any]
    dataset: DatasetReference | None

    @property
    def weights_digest(self) -> str:
        """SHA-256 of all that decides the predictions of the model, and of nothing else: its weights, the layout that
        it was trained on, its constants and the version of its arithmetic. Two equal trainings have the same, though
        their files differ in the seconds that each epoch took."""
        network, scenario = self.spec.network, self.spec.scenario
        decides = {
            "locator_version": LOCATOR_VERSION,
            "constants": self.spec.config.model_dump(mode="json"),
            "network_digest": None if network is None else network.digest,
            "scenario": None if scenario is None else scenario.model_dump(mode="json", exclude_none=True),
        }
        digest = hashlib.sha256(json.dumps(decides, sort_keys=True).encode())
        for name, tensor in sorted(self.weights.items()):
            digest.update(f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    @cached_property
    def served(self) -> Locator:
        """The model with these weights, made once: for locating, and not to be trained or moved."""
        return self.locator()

    def locator(self) -> Locator:
        """A new model with these weights, in evaluation mode. Raises ValueError if they do not fit its spec."""
        model = build_locator(self.spec)
        _check_shapes(self)
        model.load_state_dict(self.weights)
        return model.eval()

    def locate(
        self,
        frame: "pd.DataFrame",
        network: ReceiverNetwork | None = None,
        calibration: "SiteCalibration | None" = None,
        scenario: Scenario | None = None,
        mapping: ColumnMapping = PLAIN,
    ) -> "pd.DataFrame":
        """Fixes of the measurements in a data frame.

        Parameters
        ----------
        frame : DataFrame
            The columns of a measurement file: one row for each reception, in any order, or the wide form.
        network : ReceiverNetwork, optional
            The receivers. By default those that the model was trained for.
        calibration : SiteCalibration, optional
            What is known of them; by default ``SiteCalibration.prior``, by the clocks that the network names.
        scenario : Scenario, optional
            The conditions there; by default those that the model was trained for, or the preset ``default``.
        mapping : ColumnMapping, optional
            Other columns, units and missing values (``read_mapping``).

        Returns
        -------
        DataFrame
            A row for each transmission, in the order of their first rows, with the columns of a file of fixes.

        Warns
        -----
        UserWarning
            If rows were refused: how many, and why most of them.

        Raises
        ------
        ValueError
            If no network is given and the model was trained on random ones, if a column is missing, or if no row can be
            used.
        """
        from triangulation_pipeline.calibration import SiteCalibration
        from triangulation_pipeline.formats.measurement_file import recording_of_frame
        from triangulation_pipeline.model.predict import locate_recordings

        network = self.spec.network if network is None else network
        if network is None:
            raise ValueError("the model was trained on random networks: give locate the network of your receivers")
        layout = Layout(network, scenario or self.spec.scenario or Scenario())
        recording = recording_of_frame(frame, layout, mapping)
        if len(recording.refused):
            told = "; ".join(f"{count:,} because: {reason}" for reason, count in recording.reasons.head(3).items())
            if not len(recording):
                raise ValueError(f"data frame: every row was refused ({told})")
            warnings.warn(f"refused rows: {len(recording.refused):,} ({told})", stacklevel=2)
        known = SiteCalibration.prior(network) if calibration is None else calibration
        (fixes,) = locate_recordings(self, [recording], layout, known)
        return fixes.table

    def non_finite(self) -> list[str]:
        """The names of the tensors that hold a value that is not a finite number."""
        return [name for name, tensor in self.weights.items() if not torch.isfinite(tensor).all()]


def write_checkpoint(checkpoint: Checkpoint) -> bytes:
    """A checkpoint as the bytes of a ``.pth`` file."""
    return dump(
        {
            "format": FORMAT,
            "locator_version": LOCATOR_VERSION,
            "spec": checkpoint.spec.model_dump(mode="json"),
            "weights": checkpoint.weights,
            "epoch": checkpoint.epoch,
            "metrics": checkpoint.metrics,
            "config": checkpoint.config,
            "dataset": None if checkpoint.dataset is None else checkpoint.dataset.model_dump(),
        }
    )


def read_checkpoint(content: bytes) -> Checkpoint:
    """A checkpoint from bytes.

    Raises ValueError with one sentence if they are not one, if they are of a former format, or if its locator is of
    another version than the code's, which would predict otherwise from the same weights.
    """
    document = load(content)
    found = document.pop("format", None)
    if found in FORMER_FORMATS:
        raise ValueError(
            f"checkpoint has the format {found!r} of a locator that knows only the sites it was trained on, and this "
            "program does not compute that any more: train the model again"
        )
    if found != FORMAT:
        raise ValueError(f"checkpoint format must be {FORMAT!r}, this is {shown(found)}")
    try:
        _check_version(document.pop("locator_version"))
        spec, dataset = LocatorSpec.model_validate(document.pop("spec")), document.pop("dataset")
        reference = None if dataset is None else DatasetReference.model_validate(dataset)
        checkpoint = Checkpoint(spec=spec, dataset=reference, **document)
    except ValidationError as error:
        raise ValueError(f"checkpoint is incomplete: {one_sentence(error)}") from None
    except (KeyError, TypeError) as error:
        raise ValueError(f"checkpoint is incomplete: {brief(str(error), 200)}") from None
    _check_shapes(checkpoint)
    return checkpoint


def _check_version(found: object) -> None:
    if found == LOCATOR_VERSION:
        return
    newer = isinstance(found, int) and found > LOCATOR_VERSION
    raise ValueError(
        f"checkpoint is of locator version {shown(found)}, and this program computes version {LOCATOR_VERSION}: "
        + ("update the program" if newer else "train the model again")
    )


def dump(document: dict[str, Any]) -> bytes:
    """Bytes that ``load`` reads back."""
    buffer = io.BytesIO()
    torch.save(document, buffer)
    return buffer.getvalue()


def load(content: bytes) -> dict[str, Any]:
    """What ``dump`` made bytes of. Only tensors and plain values are unpickled: anything else, and a damaged file, is a
    ValueError.

    Nothing grows in memory beyond the size of the file: it holds nothing compressed, and no tensor repeats what is
    stored of it.
    """
    try:
        _check_archive(content)
        with warnings.catch_warnings():
            # PyTorch warns of a foreign pickle protocol; such a file is refused below, or was read well.
            warnings.simplefilter("ignore")
            document = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # Damaged bytes can raise anything in PyTorch's reader.
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise ValueError(f"not a readable checkpoint ({len(content)} bytes): {brief(reason, 200)}") from None
    if not isinstance(document, dict):
        raise ValueError(f"not a checkpoint: holds a {type(document).__name__}")
    _check_tensors(document, len(content))
    return document


def _check_archive(content: bytes) -> None:
    """Raises ValueError, or an error of zipfile, if the bytes are not an archive as PyTorch writes it."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        for entry in archive.infolist():
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
                raise ValueError("it holds something compressed")
        if sum(entry.file_size for entry in archive.infolist()) > len(content):
            raise ValueError("it holds more than its size")


def _check_tensors(value: Any, most_bytes: int) -> None:
    """Raises ValueError if a tensor inside is not a plain one, or is larger than the file it came from."""
    waiting = [value]
    seen = set()
    while waiting:
        value = waiting.pop()
        if isinstance(value, torch.Tensor):
            if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized or value.is_nested:
                raise ValueError("not a checkpoint: holds a tensor that is no plain one")
            if value.nelement() * value.element_size() > most_bytes:
                raise ValueError(f"not a checkpoint: holds a tensor of {value.nelement():,} values, more than its file")
        elif isinstance(value, dict | list | tuple | set) and id(value) not in seen:
            seen.add(id(value))
            waiting += [*value.keys(), *value.values()] if isinstance(value, dict) else value


def _check_shapes(checkpoint: Checkpoint) -> None:
    """Raises ValueError if the weights are not those of the architecture, by names, shapes and types."""
    with torch.random.fork_rng(devices=[]):  # building draws random weights
        fresh = build_locator(checkpoint.spec).state_dict()
    expected = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in fresh.items()}
    weights = checkpoint.weights
    if not isinstance(weights, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in weights.values()):
        raise ValueError("checkpoint's weights must be tensors by name")
    found = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in weights.items()}
    if odd := [name for name in {**expected, **found} if expected.get(name) != found.get(name)]:
        raise ValueError(
            f"checkpoint's weights do not fit its architecture {checkpoint.spec.architecture}: {len(odd)} are missing, "
            f"unknown or of another shape, the first is {shown(odd[0])}"
        )
