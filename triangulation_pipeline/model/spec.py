"""What a locator is built for, and the list of its architectures with their constants.

There is no PyTorch here, so that settings, tables and the command line name architectures at no cost. A new
architecture is an entry in this list (a member of ``Architecture``, a config, a place in ``ArchitectureConfig``) and a
file of its name in ``architectures``.
"""

from enum import StrEnum
from typing import Annotated, ClassVar, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

from triangulation_pipeline.network import ReceiverNetwork

# Raised with every change of the arithmetic that leads from weights, constants and inputs to a prediction. It is part
# of the digest of weights, so that equal digests predict the same, and of the code versions of assets. A checkpoint of
# another version is not read.
LOCATOR_VERSION = 1


# The name of the weights that come with the package.
UNIVERSAL = "universal"


class Architecture(StrEnum):
    """The architectures, by the names of their files."""

    triangulation = "triangulation"
    regression = "regression"


class _Constants(BaseModel):
    # Digests of weights leave defaults out, and checkpoints of format 1 are read with them. Before a default changes,
    # the value that it had must be written down in `checkpoint.py` for both.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class EncoderConfig(_Constants):
    """The constants that all architectures share: those of the encoder, the attention block and the regressing head."""

    embedding: int = Field(32, ge=1, le=1024, description="Numbers in the token of a receiver; a multiple of heads.")
    heads: int = Field(2, ge=1, le=1024, description="Heads of the attention block.")
    range_scale_m: float = Field(
        30e3, gt=0, description="Distances and arrival times enter the encoder in units of this, m."
    )
    dropout_rate: float = Field(
        0.0,
        ge=0,
        le=0.9,
        description="Share of activations dropped in the encoder and the attention block while training; predictions "
        "do not depend on it.",
    )

    @model_validator(mode="after")
    def _heads_share_the_embedding(self) -> Self:
        if self.embedding % self.heads:
            raise ValueError(f"embedding ({self.embedding}) must be a multiple of heads ({self.heads})")
        return self


class StartConfig(_Constants):
    """The constants of the first position of a solver, ``start.RobustStart``."""

    cells_per_side: int = Field(16, ge=1, le=128, description="The service area is searched in this number squared.")
    candidates: int = Field(6, ge=1, description="Cells of the lowest cost that are refined.")
    search_scale_m: float = Field(3000.0, gt=0, description="Cauchy scale of residuals in the search over cells, m.")
    refinement_scales_m: tuple[float, ...] = Field(
        (1000.0, 300.0, 100.0, 30.0, 0.0, 0.0),
        max_length=100,
        description="Cauchy scale of each refinement step, from the size of a cell down to the noise, m; it is added "
        "in quadrature to sigma.",
    )
    damping: float = Field(1e-3, ge=0, description="Damping of a refinement step, in units of the mean information.")
    longest_step_m: float = Field(20e3, gt=0, description="A refinement step goes no further than this, m.")
    margin_m: float = Field(10e3, ge=0, description="A refined position stays within this of the service area, m.")

    @model_validator(mode="after")
    def _candidates_are_cells(self) -> Self:
        if self.candidates > self.cells_per_side**2:
            raise ValueError(f"candidates ({self.candidates}) must be at most cells_per_side squared")
        return self


class TriangulationConfig(EncoderConfig):
    """The constants of ``architectures.triangulation``."""

    summary: ClassVar[str] = "a least-squares solver inside the neural network"

    architecture: Literal[Architecture.triangulation] = Architecture.triangulation
    rounds: int = Field(2, ge=1, le=16, description="Learned Gauss-Newton steps, each with weights of its own.")
    damping: float = Field(1e-3, ge=0, description="Damping of a learned step, in units of the mean information.")
    longest_step_m: float = Field(2000.0, gt=0, description="A learned step goes no further than this, m.")
    residual_scales_m: tuple[float, ...] = Field(
        (50.0, 300.0, 2000.0, 20_000.0),
        max_length=100,
        description="Each gives a feature, tanh(residual / scale) of the arrival time, m.",
    )
    residual_scales_sigma: tuple[float, ...] = Field(
        (1.0, 3.0, 10.0), max_length=100, description="The same for residuals in units of their sigma."
    )
    start: StartConfig = Field(StartConfig(), description="The constants of the first position.")


class RegressionConfig(EncoderConfig):
    """The constants of ``architectures.regression``."""

    summary: ClassVar[str] = "a plain regressing head, for comparison"

    architecture: Literal[Architecture.regression] = Architecture.regression


ArchitectureConfig = TriangulationConfig | RegressionConfig
ARCHITECTURE_CHOICES = " or ".join(
    f"{config.model_fields['architecture'].default} ({config.summary})" for config in get_args(ArchitectureConfig)
)


class LocatorSpec(BaseModel):
    """All it takes to build a locator before its weights are known: its constants, and the network, the altitude of the
    transmitters over the ellipsoid and the margin of the service area (metres) that it is for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    config: Annotated[ArchitectureConfig, Field(discriminator="architecture")]
    network: ReceiverNetwork
    tx_altitude_m: float
    area_margin_m: float

    @property
    def architecture(self) -> Architecture:
        """The architecture by its name."""
        return self.config.architecture
