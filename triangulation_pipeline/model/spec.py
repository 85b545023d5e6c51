"""Which locator: its architecture and what it is built for. No PyTorch here, so settings can name it cheaply."""

from enum import StrEnum

from pydantic import BaseModel, ConfigDict

from triangulation_pipeline.network import ReceiverNetwork

# Raised with every change of the arithmetic that leads from weights and inputs to a prediction: code and constants of
# this room. It is part of the digest of weights, so that equal digests predict the same, and of assets' code versions.
LOCATOR_VERSION = 1


class Architecture(StrEnum):
    """``triangulation`` solves for the position in the network; ``regression`` reads it off the pooled embedding."""

    triangulation = "triangulation"
    regression = "regression"


class LocatorSpec(BaseModel):
    """All it takes to build a locator before its weights are known."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    architecture: Architecture
    network: ReceiverNetwork
    tx_height_m: float
    area_margin_m: float
    dropout_rate: float
