"""Run settings of every step, as Dagster shows and checks them. The fields are declared in the rooms that use them.

Dagster checks names, types and choices at launch, but not ranges, and not what contradicts what: ``check_run_config``
does, for all steps at once, first thing in every step.
"""

from collections.abc import Mapping
from typing import Any, Self

import dagster as dg
from pydantic import Field, ValidationError, create_model, field_validator, model_validator

from triangulation_pipeline.network import NORTH_WEST_ITALY, ReceiverNetwork, read_network
from triangulation_pipeline.physics.scenario import PRESETS, Preset, Scenario
from triangulation_pipeline.physics.simulator import DatasetSpec
from triangulation_pipeline.training.config import Accelerator, TrainingConfig
from triangulation_pipeline.validation import one_sentence, uuid_text


class ReceiverNetworkConfig(dg.Config):
    """Which receivers."""

    network_file: str | None = Field(
        None, description="YAML file of the sites (`triangulation network` prints one); null = north-west Italy."
    )

    def network(self) -> ReceiverNetwork:
        """The network. Raises ValueError where the file does not describe one."""
        return NORTH_WEST_ITALY if self.network_file is None else read_network(self.network_file)


def _override(name: str) -> tuple[Any, Any]:
    """A field of ``Scenario`` with its bounds, made optional; Dagster knows lists, not tuples."""
    field = Scenario.model_fields[name]
    annotation: Any = list[float] if name.startswith("tx_power") else field.annotation
    optional: Any = Field(None, description=f"{field.description} Null = the preset's ({field.default} in default).")
    if annotation == field.annotation:
        optional.metadata = list(field.metadata)
    return annotation | None, optional


_OVERRIDES: dict[str, Any] = {name: _override(name) for name in Scenario.model_fields}

ScenarioOverrides = create_model(
    "ScenarioOverrides",
    __base__=dg.Config,
    __doc__="Parameters of the measurement model that differ from the preset's.",
    **_OVERRIDES,
)


class SyntheticDatasetConfig(dg.Config):
    """Which dataset: simulated from a scenario, or one that exists."""

    preset: Preset = Field(
        Preset.default,
        description="default, valley (path loss exponent 4.5), line_of_sight (no excess delays) or rss (levels only).",
    )
    scenario: ScenarioOverrides = Field(default_factory=ScenarioOverrides, description="What differs from the preset.")
    num_samples: int = Field(50_000, ge=1_000, le=5_000_000, description="Transmissions, 1000 to 5000000.")
    seed: int = Field(0, ge=0, le=2**63 - 1, description="Of all draws, 0 or more; equal seeds give equal bytes.")
    dataset_id: str | None = Field(
        None, description="Take this dataset as it is, its digest verified; nothing is simulated. Null = simulate."
    )

    @model_validator(mode="after")
    def _is_one_or_the_other(self) -> Self:
        others = ("preset", "scenario", "num_samples", "seed")
        differing = [
            name
            for name in others
            if getattr(self, name) != type(self).model_fields[name].get_default(call_default_factory=True)
        ]
        if self.dataset_id is not None and differing:
            raise ValueError(f"dataset_id takes a dataset as it is: leave out {', '.join(differing)}")
        return self

    @field_validator("dataset_id")
    @classmethod
    def _is_a_uuid(cls, value: str | None) -> str | None:
        return None if value is None else uuid_text("the id of a dataset", value)

    def spec(self, network: ReceiverNetwork) -> DatasetSpec:
        """The dataset's identity. Raises ValueError where settings contradict each other or the network."""
        overrides = self.scenario.model_dump(exclude_none=True)
        merged = PRESETS[self.preset].model_dump() | overrides
        try:
            scenario = Scenario.model_validate(merged)
        except ValidationError as error:
            raise ValueError(f"scenario: {one_sentence(error)}") from None
        return DatasetSpec(network, scenario, self.num_samples, self.seed)


class TrainedModelConfig(TrainingConfig, dg.Config):
    """How the locator is trained."""


class ModelEvaluationConfig(dg.Config):
    """What the evaluation asks of a model before it may be promoted."""

    max_rmse_m: float = Field(
        100.0, gt=0, le=1e7, description="Highest test RMSE on good geometry for a promotion, m, above 0 to 1e7."
    )


class RegisteredModelConfig(dg.Config):
    """Under which name the model is registered."""

    model_name: str = Field(
        "rf-triangulation",
        min_length=1,
        max_length=255,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        description="Letters, digits, '.', '_' and '-', 1 to 255 characters; each run makes a new version of it.",
    )


STEP_CONFIGS: dict[str, type[dg.Config]] = {
    "receiver_network": ReceiverNetworkConfig,
    "synthetic_dataset": SyntheticDatasetConfig,
    "trained_model": TrainedModelConfig,
    "model_evaluation": ModelEvaluationConfig,
    "registered_model": RegisteredModelConfig,
}


def training_settings(run_config: Mapping[str, Any]) -> TrainedModelConfig:
    """The training settings of a run. Raises ValueError (pydantic's ValidationError) where they are wrong."""
    return TrainedModelConfig(**_settings_of("trained_model", run_config))


def check_run_config(run_config: Mapping[str, Any], *, makes_network: bool = True) -> None:
    """Checks the settings of all steps of a run; the dataset's against the network's only where the run makes both.

    Raises ValueError with one sentence naming step, field and value.
    """
    checked: dict[str, dg.Config] = {}
    for step, model in STEP_CONFIGS.items():
        try:
            checked[step] = model(**_settings_of(step, run_config))
        except ValidationError as error:
            raise ValueError(f"{step}: {one_sentence(error)}") from None
    network_config, dataset_config, training = (
        checked[step] for step in ("receiver_network", "synthetic_dataset", "trained_model")
    )
    assert isinstance(network_config, ReceiverNetworkConfig)
    assert isinstance(dataset_config, SyntheticDatasetConfig)
    assert isinstance(training, TrainedModelConfig)
    if makes_network:
        try:
            dataset_config.spec(network_config.network())
        except ValueError as error:
            raise ValueError(f"synthetic_dataset: {error}") from None
    if training.accelerator is Accelerator.gpu:
        # PyTorch takes seconds to import, so only who asks for a GPU waits for the answer here.
        from triangulation_pipeline.training.trainer import choose_device

        try:
            choose_device(training.accelerator)
        except ValueError as error:
            raise ValueError(f"trained_model: {error}") from None


def _settings_of(step: str, run_config: Mapping[str, Any]) -> dict[str, Any]:
    settings = ((run_config.get("ops") or {}).get(step) or {}).get("config") or {}
    _refuse_environment(step, settings)
    return settings


def _refuse_environment(place: str, value: Any) -> None:
    """Dagster takes ``{env: NAME}`` in place of a string or whole number, and would show everyone what is in there."""
    if isinstance(value, Mapping):
        if set(value) == {"env"}:
            raise ValueError(
                f"{place}: {{env: {value['env']}}} is not taken, as settings are shown to everyone; write the value"
            )
        for name, item in value.items():
            _refuse_environment(f"{place}: {name}", item)
