"""What a locator is built for, and the list of its architectures with their constants.

There is no PyTorch here, so that settings, tables and the command line name architectures at no cost. A new
architecture is an entry in this list (a member of ``Architecture``, a config, a place in ``ArchitectureConfig``) and a
file of its name in ``architectures``.
"""

from enum import StrEnum
from typing import Annotated, ClassVar, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

from triangulation_pipeline.network import ReceiverNetwork
from triangulation_pipeline.physics.layout import Layout
from triangulation_pipeline.physics.scenario import Scenario

# Raised with every change of the arithmetic that leads from weights, constants and inputs to a prediction. It is part
# of the digest of weights, so that equal digests predict the same, and of the code versions of assets. A checkpoint of
# another version is not read.
LOCATOR_VERSION = 3


class Architecture(StrEnum):
    """The architectures, by the names of their files."""

    triangulation = "triangulation"
    regression = "regression"


# Names of weights: those that come with the package, which are of one architecture, and those of a fresh locator.
UNIVERSAL, RANDOM = "universal", "random"
UNIVERSAL_ARCHITECTURE = Architecture.triangulation


class _Constants(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class StartConfig(_Constants):
    """The constants of the hypotheses that a locator begins from, ``start.prepared``."""

    hypotheses: int = Field(3, ge=1, le=16, description="Hypotheses that are kept of each row, at most.")
    cells_per_side: int = Field(8, ge=3, le=64, description="The service area is searched in this number squared.")
    fine_cells_per_side: int = Field(
        16,
        ge=3,
        le=64,
        description="The same where three arrival times or fewer leave several places, or where the search above "
        "misses the place.",
    )
    candidates: int = Field(
        6,
        ge=1,
        le=64,
        description="Minima of the search that are refined, more in a finer search as its cells per side.",
    )
    refinement_scales: tuple[float, ...] = Field(
        (0.4, 0.12, 0.04, 0.012, 0.004, 0.0),
        max_length=100,
        description="Cauchy scale of each refinement step, in sides of a cell; it is added in quadrature to sigma.",
    )
    delay_steps: int = Field(3, ge=1, le=100, description="Further steps that heed that delayed paths are late only.")
    doubt_sigmas: float = Field(
        2.5,
        ge=0,
        description="Beyond such a residual the row is solved again by all receivers but one, and by any three.",
    )
    refits: int = Field(8, ge=1, le=64, description="Solutions by few receivers that are refined.")
    same_distance: float = Field(
        6.0, gt=0, description="Squared distance of two places, by either's covariance, below which they are one."
    )
    least_log_share: float = Field(
        -12.0, lt=0, description="Logarithm of the posterior relative to the best, below which a place is dropped."
    )


class EncoderConfig(_Constants):
    """The constants that all architectures share: those of the start, the encoder and the attention block."""

    embedding: int = Field(32, ge=1, le=1024, description="Numbers in the token of a receiver; a multiple of heads.")
    heads: int = Field(2, ge=1, le=1024, description="Heads of the attention block.")
    start: StartConfig = Field(StartConfig(), description="The constants of the hypotheses.")

    @model_validator(mode="after")
    def _heads_share_the_embedding(self) -> Self:
        if self.embedding % self.heads:
            raise ValueError(f"embedding ({self.embedding}) must be a multiple of heads ({self.heads})")
        return self


class TriangulationConfig(EncoderConfig):
    """The constants of ``architectures.triangulation``."""

    summary: ClassVar[str] = "a least-squares solver inside the neural network, with several hypotheses"

    architecture: Literal[Architecture.triangulation] = Architecture.triangulation
    components: int = Field(2, ge=1, le=8, description="Components of the posterior for each hypothesis.")
    alternatives: bool = Field(
        True, description="One more component for each receiver, as if its arrival time were judged the other way."
    )
    damping: float = Field(1e-3, ge=0, description="Damping of the learned step, in units of the mean information.")
    longest_step: float = Field(10.0, gt=0, description="The learned step goes no further, in bounds of the row.")


class RegressionConfig(EncoderConfig):
    """The constants of ``architectures.regression``."""

    summary: ClassVar[str] = "a plain regressing head, for comparison"

    architecture: Literal[Architecture.regression] = Architecture.regression


ArchitectureConfig = TriangulationConfig | RegressionConfig
ARCHITECTURE_CHOICES = " or ".join(
    f"{config.model_fields['architecture'].default} ({config.summary})" for config in get_args(ArchitectureConfig)
)


class LocatorSpec(BaseModel):
    """All it takes to build a locator before its weights are known: its constants; and the network and the scenario
    that it was trained for, or neither if it was trained on random layouts. It serves any network either way."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    config: Annotated[ArchitectureConfig, Field(discriminator="architecture")]
    network: ReceiverNetwork | None = None
    scenario: Scenario | None = None

    @model_validator(mode="after")
    def _network_and_scenario_go_together(self) -> Self:
        if (self.network is None) is not (self.scenario is None):
            raise ValueError("network and scenario must both be given, or both be left out for random layouts")
        return self

    @property
    def architecture(self) -> Architecture:
        """The architecture by its name."""
        return self.config.architecture

    @property
    def layout(self) -> Layout | None:
        """Network and scenario, or None if the locator was trained on random layouts."""
        return None if self.network is None or self.scenario is None else Layout(self.network, self.scenario)
