"""The settings of a training; the launchpad shows their descriptions."""

from enum import StrEnum
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from triangulation_pipeline.model.names import ModelName
from triangulation_pipeline.model.spec import (
    ARCHITECTURE_CHOICES,
    RANDOM,
    UNIVERSAL,
    UNIVERSAL_ARCHITECTURE,
    Architecture,
    LocatorSpec,
)
from triangulation_pipeline.physics.constants import GOOD_GDOP
from triangulation_pipeline.physics.dataset_spec import DatasetSpec
from triangulation_pipeline.validation import refuse_booleans, without_controls

# Raised with every change that trains other weights with equal settings and rows: of losses, steps and stopping, and of
# the universal weights. It is part of the code versions of assets, and of saved states.
TRAINING_VERSION = 3


class Scheduler(StrEnum):
    """The shape of the learning rate after the warm-up: ``cosine`` falls to a hundredth of the peak, ``one_cycle`` to
    nearly 0."""

    cosine = "cosine"
    one_cycle = "one_cycle"


class Accelerator(StrEnum):
    """``auto`` takes a GPU if there is one; ``gpu`` without one is an error."""

    auto = "auto"
    cpu = "cpu"
    gpu = "gpu"


class TrainingConfig(BaseModel):
    """How a locator is trained."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    job_name: str = Field(
        "training",
        min_length=1,
        max_length=255,
        description="Name of the training job, which lists of jobs show. 1 to 255 characters.",
    )
    description: str = Field(
        "", max_length=2000, description="A note that is kept with the training job. Up to 2000 characters."
    )
    model_architecture: Architecture = Field(
        Architecture.triangulation, description=f"Architecture of the model: {ARCHITECTURE_CHOICES}."
    )
    batch_size: int = Field(
        1024, ge=8, le=65_536, description="Number of samples in one step of the optimiser. 8 to 65536."
    )
    epochs: int = Field(
        3,
        ge=1,
        le=5000,
        description="Maximum number of passes over the training samples; early stopping can end the training sooner. "
        "From random weights, 10 and more pay. 1 to 5000.",
    )
    learning_rate: float = Field(
        3e-3,
        gt=0,
        le=1,
        description="Peak learning rate of the optimiser AdamW: the warm-up rises to it, the schedule falls from it. "
        "Above 0 to 1.",
    )
    weight_decay: float = Field(
        1e-4,
        ge=0,
        le=1,
        description="Weight decay of AdamW: in each step, every weight shrinks by learning rate times this. 0 to 1.",
    )
    lr_scheduler: Scheduler = Field(
        Scheduler.cosine,
        description="Shape of the learning rate over the steps after the warm-up: cosine (falls to 1 % of the peak) or "
        "one_cycle (falls to nearly 0).",
    )
    warmup_epochs: float = Field(
        0.5,
        ge=0,
        le=1000,
        description="Number of epochs at the beginning in which the learning rate rises, also a part of one; must be "
        "fewer than epochs. 0 to 1000.",
    )
    early_stop_patience: int = Field(
        10,
        ge=0,
        le=5000,
        description="The training stops early after this many epochs without improvement. 0 = never. 0 to 5000.",
    )
    early_stop_delta: float = Field(
        0.001,
        ge=0,
        le=1e6,
        description="The validation loss must fall by more than this to count as an improvement for early stopping. "
        "0 to 1e6.",
    )
    max_grad_norm: float = Field(
        1.0,
        gt=0,
        le=1e6,
        description="If the norm of the gradient of a step is larger than this, the gradient is scaled down to it. "
        "Above 0 to 1e6.",
    )
    max_gdop: float = Field(
        GOOD_GDOP,
        gt=0,
        le=1e6,
        description="Samples with a GDOP below this count as good geometry. Errors are also reported for them alone, "
        "and they decide the promotion of the model. The training uses all samples. Above 0 to 1e6.",
    )
    min_snr_db: float | None = Field(
        None,
        ge=-50,
        le=100,
        description="Training samples whose mean SNR over the detecting receivers is lower than this are left out, dB; "
        "validation and test samples are not. Null = all are used. -50 to 100.",
    )
    parent_model_id: str | None = Field(
        None,
        description="The weights that the training begins with: universal (those that come with the package, for the "
        "architecture triangulation), random, or those of a registered model of the same architecture (fine-tuning), "
        "whatever its network: give its name and version, as in rf-triangulation/4, rf-triangulation@production, the "
        "name alone for its version in production, or its newest version if none is in production, or the id of the "
        "model. Null = universal, and for the architecture regression random.",
    )
    checkpoint_every: int = Field(
        10,
        ge=1,
        le=5000,
        description="Every so many epochs the weights are kept in a file of their own, epoch_{n}.pth. 1 to 5000.",
    )
    accelerator: Accelerator = Field(
        Accelerator.auto,
        description="Where the training runs: auto (on a GPU if there is one, else on the CPU), cpu, or gpu (an error "
        "if there is none).",
    )
    seed: int = Field(
        0,
        ge=0,
        le=2**63 - 1,
        description="Random seed of the initial weights and of the order of the samples; on one machine the same seed "
        "gives the same model. 0 or more.",
    )

    _no_booleans = model_validator(mode="before")(refuse_booleans)

    _have_no_controls = field_validator("job_name", "description")(without_controls)

    @model_validator(mode="before")
    @classmethod
    def _begins_with_the_best_weights(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("parent_model_id") is None:
            has_universal = data.get("model_architecture", UNIVERSAL_ARCHITECTURE) == UNIVERSAL_ARCHITECTURE
            return data | {"parent_model_id": UNIVERSAL if has_universal else RANDOM}
        return data

    @field_validator("parent_model_id")
    @classmethod
    def _refers_to_a_model(cls, value: str) -> str:
        if ModelName.parse(value) is not None:
            return value
        raise ValueError(
            f"must be {UNIVERSAL}, {RANDOM}, or a model: its name, its id, name/version as in rf-triangulation/4, or "
            "name@production"
        )

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs ({self.warmup_epochs:g}) must be fewer than epochs ({self.epochs})")
        if self.parent_model_id == UNIVERSAL and self.model_architecture is not UNIVERSAL_ARCHITECTURE:
            raise ValueError(
                f"parent_model_id ({UNIVERSAL}) must be {RANDOM} or a model, as the weights that come with the package "
                f"are not for the architecture {self.model_architecture}"
            )
        return self

    @property
    def registered_parent(self) -> str | None:
        """What refers to the registered model whose weights the training begins with; None if there is none."""
        return None if self.parent_model_id in (UNIVERSAL, RANDOM) else self.parent_model_id

    def locator_spec(self, dataset: DatasetSpec) -> LocatorSpec:
        """The locator to be trained on a dataset with these settings, with the default constants of its architecture.
        It is for the dataset's network and scenario; for any, if the dataset is of random networks."""
        network = dataset.network
        scenario = None if network is None else dataset.scenario
        config = {"architecture": self.model_architecture}
        return LocatorSpec.model_validate({"config": config, "network": network, "scenario": scenario})
