"""Settings of a training, each honoured by the loop; the description is what the launchpad shows."""

import re
from enum import StrEnum
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from triangulation_pipeline.model.spec import Architecture
from triangulation_pipeline.validation import refuse_booleans, without_controls

# A name as registered_model takes it, which may look like an id, with or without a version.
MODEL_REFERENCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}(:[1-9][0-9]{0,8})?")

# Raised with every change of the weights that equal settings and rows are trained to: losses, steps, stopping,
# calibration. Part of assets' code versions.
TRAINING_VERSION = 1


class Scheduler(StrEnum):
    """``cosine`` anneals to a hundredth; ``one_cycle`` rises to the learning rate and falls to nearly nothing."""

    cosine = "cosine"
    one_cycle = "one_cycle"


class Accelerator(StrEnum):
    """``auto`` takes a GPU where there is one; ``gpu`` without one is an error."""

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
        description="Name of the training job, for listings, 1 to 255 characters.",
    )
    description: str = Field(
        "", max_length=2000, description="A note that is kept with the job, up to 2000 characters."
    )
    model_architecture: Architecture = Field(
        Architecture.triangulation,
        description="triangulation (a solver inside the network) or regression (a plain head, for comparison).",
    )
    batch_size: int = Field(512, ge=8, le=65_536, description="Samples in one training step, 8 to 65536.")
    epochs: int = Field(
        15,
        ge=1,
        le=5000,
        description="Number of passes over the training samples at most; early stopping may end sooner. 1 to 5000.",
    )
    learning_rate: float = Field(
        3e-3,
        gt=0,
        le=1,
        description="Peak learning rate of AdamW: the warm-up rises to it, the schedule falls from it. Above 0 to 1.",
    )
    weight_decay: float = Field(1e-4, ge=0, le=1, description="Weight decay of AdamW, 0 to 1.")
    dropout_rate: float = Field(
        0.0, ge=0, le=0.9, description="Share of activations dropped in the encoder and the attention block, 0 to 0.9."
    )
    lr_scheduler: Scheduler = Field(
        Scheduler.cosine, description="How the learning rate falls after the warm-up: cosine or one_cycle."
    )
    warmup_epochs: int = Field(
        1, ge=0, le=1000, description="Epochs in which the learning rate rises linearly; fewer than epochs, 0 to 1000."
    )
    early_stop_patience: int = Field(
        10,
        ge=0,
        le=5000,
        description="The training stops after this many epochs without improvement. 0 = never. 0 to 5000.",
    )
    early_stop_delta: float = Field(
        0.001,
        ge=0,
        le=1e6,
        description="The validation loss must fall by more than this to count as an improvement, 0 to 1e6.",
    )
    max_grad_norm: float = Field(1.0, gt=0, le=1e6, description="Gradients are clipped to this norm, above 0 to 1e6.")
    max_gdop: float = Field(
        5.0,
        gt=0,
        le=1e6,
        description="Samples with a lower GDOP have good geometry; errors are reported on them, and they decide a "
        "promotion. The training uses all samples. Above 0 to 1e6.",
    )
    min_snr_db: float | None = Field(
        None,
        ge=-50,
        le=100,
        description="Training samples with a lower mean SNR are left out, dB, -50 to 100. Null = all are used.",
    )
    parent_model_id: str | None = Field(
        None,
        description="A registered model of the same network and architecture, from whose weights the training begins "
        "(fine-tuning): name:version, as in rf-triangulation:4; name, for its version in production, else its newest; "
        "or its id. Null = from random weights.",
    )
    checkpoint_every: int = Field(10, ge=1, le=5000, description="epoch_{n}.pth is kept every n epochs, 1 to 5000.")
    accelerator: Accelerator = Field(
        Accelerator.auto,
        description="Where the training runs: auto (a GPU if there is one), cpu or gpu (an error without one).",
    )
    seed: int = Field(
        0,
        ge=0,
        le=2**63 - 1,
        description="Seed of the initial weights, of dropout and of the order of the samples, 0 or more.",
    )

    _no_booleans = model_validator(mode="before")(refuse_booleans)

    _have_no_controls = field_validator("job_name", "description")(without_controls)

    @field_validator("parent_model_id")
    @classmethod
    def _refers_to_a_model(cls, value: str | None) -> str | None:
        if value is None or MODEL_REFERENCE.fullmatch(value):
            return value
        raise ValueError("must be name:version, as in rf-triangulation:4, the name of a model, or the id of one")

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs ({self.warmup_epochs}) must be fewer than epochs ({self.epochs})")
        return self
