"""Checkpoints as bytes: plain tensors, numbers and strings only, so that reading one never executes anything."""

import hashlib
import io
import json
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import ValidationError

from triangulation_pipeline.model.locator import Locator, build_locator
from triangulation_pipeline.model.spec import LOCATOR_VERSION, LocatorSpec

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
        try:
            model.load_state_dict(self.weights)
        except RuntimeError as error:
            raise ValueError(f"checkpoint's weights do not fit its architecture: {error}") from None
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
        raise ValueError(f"checkpoint format must be {FORMAT!r}, this is {found!r}")
    try:
        return Checkpoint(spec=LocatorSpec.model_validate(document.pop("spec")), **document)
    except (KeyError, TypeError, ValidationError) as error:
        raise ValueError(f"checkpoint is incomplete: {' '.join(str(error).split())}") from None


def dump(document: dict[str, Any]) -> bytes:
    """Bytes that ``load`` reads back."""
    buffer = io.BytesIO()
    torch.save(document, buffer)
    return buffer.getvalue()


def load(content: bytes) -> dict[str, Any]:
    """Unpickles tensors and plain values only; anything else, and a damaged file, is a ValueError."""
    try:
        with warnings.catch_warnings():
            # What PyTorch merely warns of (a foreign pickle protocol) is refused below, or was read well.
            warnings.simplefilter("ignore")
            document = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # PyTorch's reader lets through whatever damaged bytes make it stumble over.
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(f"not a readable checkpoint ({len(content)} bytes): {reason}") from None
    if not isinstance(document, dict):
        raise ValueError(f"not a checkpoint: holds a {type(document).__name__}")
    return document
