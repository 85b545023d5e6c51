"""The settings of each step, as Dagster shows and checks them. Most fields are declared in the rooms that use them.

At launch Dagster checks names, types and choices, but neither ranges nor contradictions. ``check_run_config`` checks
those, for all steps at once, before the first step of a run.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self, get_type_hints

import dagster as dg
from pydantic import ConfigDict, Field, ValidationError, create_model, field_validator, model_validator

from triangulation_pipeline.defs.run_config import config_fault
from triangulation_pipeline.documents import file_name
from triangulation_pipeline.model.spec import RANDOM, UNIVERSAL
from triangulation_pipeline.network import NORTH_WEST_ITALY, ReceiverNetwork
from triangulation_pipeline.network_file import read_network
from triangulation_pipeline.physics.dataset_spec import ROWS_PER_LAYOUT, DatasetSpec
from triangulation_pipeline.physics.layout import DRAWN_PARAMETERS, FEWEST_RANDOM_SITES, MOST_RANDOM_SITES, Layouts
from triangulation_pipeline.physics.plan import check_plan
from triangulation_pipeline.physics.scenario import Preset, Scenario, scenario_of
from triangulation_pipeline.storage.settings import dagster_home
from triangulation_pipeline.training.config import Accelerator, TrainingConfig
from triangulation_pipeline.validation import (
    brief,
    expanded,
    one_sentence,
    printable,
    refuse_booleans,
    shown,
    uuid_text,
)

NETWORK_FOLDER_VARIABLE = "TRIANGULATION_NETWORK_FOLDER"
"""The folder outside which run config may not name network files; unset, it may name any file."""


class StepConfig(dg.Config):
    """Base of the settings of a step. Dagster's messages about a wrong value do not quote it."""

    model_config = ConfigDict(hide_input_in_errors=True)

    _no_booleans = model_validator(mode="before")(refuse_booleans)


class ReceiverNetworkConfig(StepConfig):
    """Which receivers the network has."""

    network_file: str | None = Field(
        "",  # the launchpad shows an empty text, and hides null
        description="File of the sites: YAML (`triangulation network` prints one), CSV with the columns name, lat, lon "
        "and altitude_m, or GeoJSON points. A relative path is resolved against TRIANGULATION_NETWORK_FOLDER if it is "
        "set, else against DAGSTER_HOME. Empty = north-west Italy.",
    )

    def network(self) -> ReceiverNetwork:
        """The network. Raises ValueError if the file does not describe one, or lies outside the folder
        TRIANGULATION_NETWORK_FOLDER."""
        return read_network(network_path(self.network_file)) if self.network_file else NORTH_WEST_ITALY


def network_path(name: str) -> Path:
    """The path of a network file that run config names.

    Raises ValueError if TRIANGULATION_NETWORK_FOLDER is set and the file lies outside that folder. Links are followed.
    """
    folder = os.environ.get(NETWORK_FOLDER_VARIABLE, "").strip()
    try:
        allowed = (dagster_home() / expanded(folder)).resolve() if folder else None
    except (RuntimeError, OSError, ValueError):
        raise ValueError(f"{NETWORK_FOLDER_VARIABLE} is not the name of a folder") from None
    try:
        path = expanded(name)
        if allowed is None:
            return dagster_home() / path
        path = (allowed / path).resolve()
    except (RuntimeError, OSError, ValueError):
        raise ValueError(f"network file {file_name(Path(name))} is not the name of a file") from None
    if not path.is_relative_to(allowed):
        raise ValueError(
            f"network file {file_name(Path(name))} lies outside {allowed}, the folder of network files "
            f"({NETWORK_FOLDER_VARIABLE})"
        )
    return path


def _override(name: str) -> tuple[Any, Any]:
    """A field of ``Scenario`` with its bounds, made optional. A tuple becomes a list, as Dagster has no tuples."""
    field = Scenario.model_fields[name]
    annotation: Any = list[float] if name.startswith("tx_power") else field.annotation
    default = "left out" if field.default is None else field.default
    optional: Any = Field(None, description=f"{field.description} Null = the preset's ({default} in default).")
    if annotation == field.annotation:
        optional.metadata = list(field.metadata)
    return annotation | None, optional


_OVERRIDES: dict[str, Any] = {name: _override(name) for name in Scenario.model_fields}

ScenarioOverrides = create_model(
    "ScenarioOverrides",
    __base__=StepConfig,
    __doc__="Parameters of the measurement model that differ from the preset's.",
    **_OVERRIDES,
)


class SyntheticDatasetConfig(StepConfig):
    """Which dataset is used: a simulated one, or one that exists."""

    preset: Preset = Field(
        Preset.default,
        description="The conditions: default, line_of_sight (no delayed paths), valley (path-loss exponent 4.5), urban "
        "(noise and late arrivals of a city), handheld (5 W and a short antenna), wideband (200 kHz), rss (signal "
        "strength only) or uncalibrated (large clock biases and gains).",
    )
    layouts: Layouts = Field(
        Layouts.own,
        description="The networks: own simulates the network of receiver_network; random simulates a new one for each "
        f"{ROWS_PER_LAYOUT} samples and takes no network file. A random network has {FEWEST_RANDOM_SITES} to "
        f"{MOST_RANDOM_SITES} sites within 20 to 400 km. These parameters are drawn for each of them, and scenario "
        f"must leave them out: {', '.join(DRAWN_PARAMETERS)}.",
    )
    scenario: ScenarioOverrides = Field(
        default_factory=ScenarioOverrides, description="Parameters of the simulation that differ from the preset."
    )
    num_samples: int = Field(
        50_000, ge=1_000, le=5_000_000, description="Number of simulated transmissions, 1000 to 5000000."
    )
    seed: int = Field(
        0,
        ge=0,
        le=2**63 - 1,
        description="Random seed of the simulation, 0 or more; the same seed gives identical data.",
    )
    dataset_id: str | None = Field(
        "", description="Id of an existing dataset to use as it is; its digest is verified. Empty = simulate."
    )

    @model_validator(mode="after")
    def _is_one_or_the_other(self) -> Self:
        others = ("preset", "layouts", "scenario", "num_samples", "seed")
        differing = [
            name
            for name in others
            if getattr(self, name) != type(self).model_fields[name].get_default(call_default_factory=True)
        ]
        if self.dataset_id and differing:
            raise ValueError(f"dataset_id takes a dataset as it is: leave out {', '.join(differing)}")
        return self

    @field_validator("dataset_id")
    @classmethod
    def _is_a_uuid(cls, value: str | None) -> str | None:
        return uuid_text("the id of a dataset", value) if value else value

    def conditions(self) -> Scenario:
        """The preset with the parameters that differ. Raises ValueError if parameters contradict each other."""
        return scenario_of(self.preset, self.scenario.model_dump(exclude_none=True))

    def spec(self, network: ReceiverNetwork) -> DatasetSpec:
        """What identifies the dataset, of the run's network unless layouts are random. Raises ValueError if settings
        contradict each other or the network."""
        own = network if self.layouts is Layouts.own else None
        return DatasetSpec(own, self.conditions(), self.num_samples, self.seed, self.layouts)


class NetworkPlanConfig(StepConfig):
    """The conditions that the network is planned for."""

    preset: Preset | None = Field(
        None,
        description="The plan is made for these conditions, a preset as of synthetic_dataset. Null = preset and "
        "scenario of synthetic_dataset in the same run, or the preset default if it simulates random networks.",
    )
    scenario: ScenarioOverrides = Field(
        default_factory=ScenarioOverrides,
        description="Parameters that differ from the preset of the plan; they need a preset.",
    )

    @model_validator(mode="after")
    def _has_a_preset(self) -> Self:
        if self.preset is None and (given := self.scenario.model_dump(exclude_none=True)):
            raise ValueError(f"scenario changes a preset: give preset too, or leave out {', '.join(given)}")
        return self

    def conditions(self, dataset: SyntheticDatasetConfig) -> Scenario:
        """The scenario of the plan, in a run with these settings of the dataset. Raises ValueError if parameters
        contradict each other."""
        if self.preset is not None:
            return scenario_of(self.preset, self.scenario.model_dump(exclude_none=True))
        if dataset.layouts is Layouts.random:
            return scenario_of(Preset.default, {})
        return dataset.conditions()


class TrainedModelConfig(TrainingConfig, StepConfig):
    """How the locator is trained."""


class ModelEvaluationConfig(StepConfig):
    """What a model must achieve in the evaluation before it may be promoted."""

    max_rmse_m: float = Field(
        100.0,
        gt=0,
        le=1e7,
        description="Highest test RMSE on samples with good geometry that allows a promotion, m, above 0 to 1e7.",
    )


class RegisteredModelConfig(StepConfig):
    """The name that the model is registered under."""

    model_name: str = Field(
        "rf-triangulation",
        min_length=1,
        max_length=255,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        description="Name of the model: letters, digits, '.', '_' and '-', 1 to 255 characters, but not universal or "
        "random. New weights are its next version.",
    )

    @field_validator("model_name")
    @classmethod
    def _is_not_reserved(cls, value: str) -> str:
        if value in (UNIVERSAL, RANDOM):
            raise ValueError(f"must not be {UNIVERSAL} or {RANDOM}, which mean other weights in parent_model_id")
        return value


@dataclass(frozen=True)
class RunSettings:
    """The settings of all steps of a run, by the name of the step."""

    receiver_network: ReceiverNetworkConfig
    network_plan: NetworkPlanConfig
    synthetic_dataset: SyntheticDatasetConfig
    trained_model: TrainedModelConfig
    model_evaluation: ModelEvaluationConfig
    registered_model: RegisteredModelConfig

    @cached_property
    def network(self) -> ReceiverNetwork:
        """The network. Its file is read at the first use, and not again. Raises ValueError as ``read_network`` does."""
        return self.receiver_network.network()

    @property
    def planned(self) -> Scenario:
        """The scenario of the plan. Raises ValueError if its parameters contradict each other."""
        return self.network_plan.conditions(self.synthetic_dataset)


STEP_CONFIGS: dict[str, type[StepConfig]] = get_type_hints(RunSettings)
"""The class of each step's settings."""


def settings_of(run_config: Mapping[str, Any]) -> RunSettings:
    """The settings of a run, with defaults where the run config has none.

    Raises ValueError with one sentence naming step, field and value.
    """
    refuse_environment(run_config)
    checked: dict[str, Any] = {}
    for step, model in STEP_CONFIGS.items():
        config = ((run_config.get("ops") or {}).get(step) or {}).get("config") or {}
        try:
            checked[step] = model(**config)
        except ValidationError as error:
            raise ValueError(f"{step}: {one_sentence(error)}") from None
    return RunSettings(**checked)


def check_run_config(
    run_config: Mapping[str, Any], *, makes_network: bool = True, runs_here: bool = True
) -> RunSettings:
    """The settings of a run, also checked for contradictions.

    The settings of the dataset are checked against the network only if the run makes the network, and the device only
    if the run is on this machine. Raises ValueError with one sentence naming step, field and value.
    """
    settings = settings_of(run_config)
    if makes_network:
        try:
            network = settings.network
        except ValueError as error:
            raise ValueError(f"receiver_network: {error}") from None
        if settings.synthetic_dataset.layouts is Layouts.random and settings.receiver_network.network_file:
            raise ValueError(
                "synthetic_dataset: layouts: random draws its networks; leave out network_file of receiver_network"
            )
        try:
            settings.synthetic_dataset.spec(network)
        except ValueError as error:
            raise ValueError(f"synthetic_dataset: {error}") from None
        try:
            check_plan(network, settings.planned)
        except ValueError as error:
            raise ValueError(f"network_plan: {error}") from None
    if runs_here and settings.trained_model.accelerator is Accelerator.gpu:
        # PyTorch takes seconds to import, so only a run that asks for a GPU waits for it here.
        from triangulation_pipeline.training.trainer import choose_device

        try:
            choose_device(settings.trained_model.accelerator)
        except ValueError as error:
            raise ValueError(f"trained_model: {error}") from None
    return settings


def check_whole_run_config(
    job: dg.JobDefinition, run_config: Mapping[str, Any], *, runs_here: bool = True
) -> RunSettings:
    """The settings of a run of the whole job, checked as Dagster does at launch (names, types and choices), and then by
    ``check_run_config``. Raises ValueError with one sentence."""
    refuse_environment(run_config)
    try:
        dg.validate_run_config(job, run_config)
    except dg.DagsterInvalidConfigError as error:
        raise ValueError(brief("; ".join(config_fault(fault.message) for fault in error.errors))) from None
    return check_run_config(run_config, runs_here=runs_here)


def refuse_environment(run_config: Mapping[str, Any]) -> None:
    """Raises ValueError if a run config contains ``{env: NAME}``.

    Dagster would replace it by the value of that variable, and show the value to everyone in its messages. Call this
    before any settings object is made from a run config.
    """
    found: list[tuple[str, Any]] = [("", run_config)]
    while found:
        place, value = found.pop()
        if isinstance(value, Mapping):
            if set(value) == {"env"}:
                raise ValueError(
                    f"{place}: {{env: {shown(value['env'])}}} is not taken, as settings are shown to everyone; write "
                    "the value"
                )
            found += ((f"{place}.{printable(str(name))}".lstrip("."), item) for name, item in value.items())
        elif isinstance(value, list | tuple):
            found += ((f"{place}[{number}]", item) for number, item in enumerate(value))
