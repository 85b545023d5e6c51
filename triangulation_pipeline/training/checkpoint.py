"""Checkpoints as bytes: plain tensors, numbers and strings only, so that reading one never executes anything."""

import hashlib
import io
import json
import warnings
import zipfile
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import ValidationError

from triangulation_pipeline.model.locator import Locator, build_locator
from triangulation_pipeline.model.spec import LOCATOR_VERSION, LocatorSpec
from triangulation_pipeline.validation import brief, one_sentence, shown

FORMAT = "triangulation-checkpoint/1"


@dataclass(frozen=True)
class Checkpoint:
    """One set of weights and where it comes from."""

    spec: LocatorSpec
    weights: dict[str, torch.Tensor]
    epoch: int
    metrics: dict[str, float | int | None]
    config: dict[str, Any]
    dataset: dict[str, str]
    code_version: str

    @property
    def weights_digest(self) -> str:
        """SHA-256 of all that decides the model's predictions, and of nothing else: weights, network, heights, area,
        architecture and its version. Two equal trainings have the same, though their files differ in the seconds that
        each epoch took."""
        decides = {
            "locator_version": LOCATOR_VERSION,
            **self.spec.model_dump(mode="json", include={"architecture", "tx_height_m", "area_margin_m"}),
            "network_digest": self.spec.network.digest,
        }
        digest = hashlib.sha256(json.dumps(decides, sort_keys=True).encode())
        for name, tensor in sorted(self.weights.items()):
            digest.update(f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def locator(self) -> Locator:
        """The model with these weights, in evaluation mode. Raises ValueError where they do not fit its spec."""
        model = build_locator(self.spec)
        _check_shapes(self)
        model.load_state_dict(self.weights)
        return model.eval()

    def non_finite(self) -> list[str]:
        """Names of tensors that hold a value that is not a finite number."""
        return [name for name, tensor in self.weights.items() if not torch.isfinite(tensor).all()]


def write_checkpoint(checkpoint: Checkpoint) -> bytes:
    """A checkpoint as the bytes of a ``.pth`` file."""
    return dump(
        {
            "format": FORMAT,
            "spec": checkpoint.spec.model_dump(mode="json"),
            "weights": checkpoint.weights,
            "epoch": checkpoint.epoch,
            "metrics": checkpoint.metrics,
            "config": checkpoint.config,
            "dataset": checkpoint.dataset,
            "code_version": checkpoint.code_version,
        }
    )


def read_checkpoint(content: bytes) -> Checkpoint:
    """A checkpoint from bytes. Raises ValueError with one sentence where they are not one."""
    document = load(content)
    found = document.pop("format", None)
    if found != FORMAT:
        raise ValueError(f"checkpoint format must be {FORMAT!r}, this is {shown(found)}")
    try:
        checkpoint = Checkpoint(spec=LocatorSpec.model_validate(document.pop("spec")), **document)
    except ValidationError as error:
        raise ValueError(f"checkpoint is incomplete: {one_sentence(error)}") from None
    except (KeyError, TypeError) as error:
        raise ValueError(f"checkpoint is incomplete: {brief(str(error), 200)}") from None
    _check_shapes(checkpoint)
    return checkpoint


def dump(document: dict[str, Any]) -> bytes:
    """Bytes that ``load`` reads back."""
    buffer = io.BytesIO()
    torch.save(document, buffer)
    return buffer.getvalue()


def load(content: bytes) -> dict[str, Any]:
    """Unpickles tensors and plain values only; anything else, and a damaged file, is a ValueError.

    Nothing grows in memory beyond the size of the file: it holds nothing compressed, and no tensor repeats what is
    stored of it.
    """
    try:
        _check_archive(content)
        with warnings.catch_warnings():
            # What PyTorch merely warns of (a foreign pickle protocol) is refused below, or was read well.
            warnings.simplefilter("ignore")
            document = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # PyTorch's reader lets through whatever damaged bytes make it stumble over.
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise ValueError(f"not a readable checkpoint ({len(content)} bytes): {brief(reason, 200)}") from None
    if not isinstance(document, dict):
        raise ValueError(f"not a checkpoint: holds a {type(document).__name__}")
    _check_tensors(document, len(content))
    return document


def _check_archive(content: bytes) -> None:
    """Raises ValueError or zipfile's errors where the bytes are no archive as PyTorch writes them."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        for entry in archive.infolist():
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
                raise ValueError("it holds something compressed")
        if sum(entry.file_size for entry in archive.infolist()) > len(content):
            raise ValueError("it holds more than its size")


def _check_tensors(value: Any, most_bytes: int) -> None:
    """Raises ValueError where a tensor inside is no plain one, or larger than the file it came from."""
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
    """Raises ValueError where the weights are not those of the architecture, by names, shapes and types."""
    with torch.random.fork_rng(devices=[]):  # which building draws from
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
