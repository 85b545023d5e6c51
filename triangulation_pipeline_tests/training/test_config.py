from typing import Any

import pytest
from pydantic import ValidationError

from triangulation_pipeline.model.spec import Architecture
from triangulation_pipeline.network import NORTH_WEST_ITALY
from triangulation_pipeline.physics.dataset_spec import DatasetSpec
from triangulation_pipeline.physics.layout import Layouts
from triangulation_pipeline.physics.scenario import Scenario
from triangulation_pipeline.training.config import Accelerator, Scheduler, TrainingConfig
from triangulation_pipeline.validation import one_sentence


@pytest.mark.parametrize(
    ("field", "least", "most", "below", "above"),
    [
        ("job_name", "a", "a" * 255, "", "a" * 256),
        ("description", "", "a" * 2000, None, "a" * 2001),
        ("batch_size", 8, 65_536, 7, 65_537),
        ("epochs", 1, 5000, 0, 5001),
        ("learning_rate", 1e-12, 1.0, 0.0, 1.01),
        ("weight_decay", 0.0, 1.0, -0.1, 1.01),
        ("warmup_epochs", 0.0, 1000.0, -0.1, 1000.1),
        ("early_stop_patience", 0, 5000, -1, 5001),
        ("early_stop_delta", 0.0, 1e6, -0.1, 1.1e6),
        ("max_grad_norm", 1e-12, 1e6, 0.0, 1.1e6),
        ("max_gdop", 1e-12, 1e6, 0.0, 1.1e6),
        ("min_snr_db", -50.0, 100.0, -50.1, 100.1),
        ("checkpoint_every", 1, 5000, 0, 5001),
        ("seed", 0, 2**63 - 1, -1, 2**63),
    ],
)
def test_bounds(field: str, least: Any, most: Any, below: Any, above: Any) -> None:
    beside = {"epochs": 5000} if field == "warmup_epochs" else {"warmup_epochs": 0}
    for value in (least, most):
        assert getattr(TrainingConfig(**beside | {field: value}), field) == value
    for value in (below, above):
        with pytest.raises(ValidationError, match=field):
            TrainingConfig(**beside | {field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model_architecture", "resnet"),
        ("lr_scheduler", "step"),
        ("accelerator", "tpu"),
        ("epochs", "many"),
        ("learning_rate", float("nan")),
        ("learing_rate", 1e-3),
    ],
)
def test_wrong_choices_types_and_names_are_refused(field: str, value: Any) -> None:
    with pytest.raises(ValidationError, match=field):
        TrainingConfig(**{field: value})


@pytest.mark.parametrize("field", ["job_name", "description"])
@pytest.mark.parametrize(
    "control", ["\n", "\r", "\t", "\x00", "\x1b", "\x07", "\x7f", "\x9b", "\u202e", "\u2028", "\ufeff"]
)
def test_what_would_steer_a_terminal_or_a_log_is_refused(field: str, control: str) -> None:
    with pytest.raises(ValidationError) as caught:
        TrainingConfig(**{field: f"night{control}[2J"})
    sentence = one_sentence(caught.value)
    assert sentence.startswith(f"{field}: must not hold control characters")
    assert sentence.isprintable()


@pytest.mark.parametrize("text", ["Nachtlauf 3 [ü] $x_1$ \\frac", "東京\u3000夜", "می‌خواهم", "👩‍🚀"])
def test_words_of_any_script_are_taken(text: str) -> None:
    assert (TrainingConfig(job_name=text).job_name, TrainingConfig(description=text).description) == (text, text)


@pytest.mark.parametrize(("epochs", "warmup_epochs"), [(2, 2), (2, 2.5), (1, 1)])
def test_a_warm_up_as_long_as_the_training_is_refused(epochs: int, warmup_epochs: float) -> None:
    with pytest.raises(ValidationError, match=rf"\({warmup_epochs}\) must be fewer than epochs \({epochs}\)"):
        TrainingConfig(epochs=epochs, warmup_epochs=warmup_epochs)


def test_what_is_trained_where_nothing_is_said() -> None:
    assert TrainingConfig().model_dump(mode="json") == {
        "job_name": "training",
        "description": "",
        "model_architecture": "triangulation",
        "batch_size": 1024,
        "epochs": 3,
        "learning_rate": 0.003,
        "weight_decay": 0.0001,
        "lr_scheduler": "cosine",
        "warmup_epochs": 0.5,
        "early_stop_patience": 10,
        "early_stop_delta": 0.001,
        "max_grad_norm": 1.0,
        "max_gdop": 5.0,
        "min_snr_db": None,
        "parent_model_id": "universal",
        "checkpoint_every": 10,
        "accelerator": "auto",
        "seed": 0,
    }


@pytest.mark.parametrize("field", [name for name, value in TrainingConfig() if isinstance(value, int | float)])
def test_true_and_false_are_no_numbers(field: str) -> None:
    with pytest.raises(ValidationError, match=f"{field}: must be a number or a text, not true or false"):
        TrainingConfig(**{field: True})


def test_a_config_is_not_changed() -> None:
    config = TrainingConfig()
    with pytest.raises(ValidationError, match="frozen"):
        config.epochs = 3  # type: ignore[misc]


def test_every_field_says_what_it_is() -> None:
    assert all(field.description for field in TrainingConfig.model_fields.values())


def test_json_round_trip() -> None:
    config = TrainingConfig(lr_scheduler=Scheduler.one_cycle, accelerator=Accelerator.cpu, min_snr_db=3.0)
    assert TrainingConfig.model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    "reference",
    [
        "rf-triangulation",
        "rf-triangulation:4",
        "rf-triangulation/4",
        "a@production",
        "a:1",
        "x" * 255,
        "00000000-0000-4000-8000-000000000000",
    ],
)
def test_a_model_is_referred_to_by_name_version_or_id(reference: str) -> None:
    assert TrainingConfig(parent_model_id=reference).parent_model_id == reference


@pytest.mark.parametrize(
    "reference",
    ["", ":4", "a:", "a:0", "a:-1", "a:4:5", "a/4@production", "a@staging", "a b", "a:four", "x" * 256, "a\n", "/a"],
)
def test_what_refers_to_no_model_is_refused_and_not_quoted(reference: str) -> None:
    with pytest.raises(ValidationError) as caught:
        TrainingConfig(parent_model_id=reference)
    assert one_sentence(caught.value) == (
        "parent_model_id: must be universal, random, or a model: its name, its id, name/version as in "
        "rf-triangulation/4, or name@production"
    )


@pytest.mark.parametrize(
    ("settings", "parent", "registered"),
    [
        ({}, "universal", None),
        ({"parent_model_id": None}, "universal", None),
        ({"model_architecture": "triangulation", "parent_model_id": "universal"}, "universal", None),
        ({"model_architecture": "regression"}, "random", None),
        ({"model_architecture": Architecture.regression, "parent_model_id": None}, "random", None),
        ({"parent_model_id": "random"}, "random", None),
        ({"parent_model_id": "a:4"}, "a:4", "a:4"),
        ({"model_architecture": "regression", "parent_model_id": "a"}, "a", "a"),
    ],
)
def test_where_nothing_is_said_a_training_begins_with_the_best_weights_there_are(
    settings: dict[str, Any], parent: str, registered: str | None
) -> None:
    config = TrainingConfig(**settings)
    assert (config.parent_model_id, config.registered_parent) == (parent, registered)


def test_an_architecture_without_universal_weights_cannot_begin_with_them() -> None:
    with pytest.raises(ValidationError) as caught:
        TrainingConfig(model_architecture=Architecture.regression, parent_model_id="universal")
    assert one_sentence(caught.value) == (
        "parent_model_id (universal) must be random or a model, as the weights that come with the package are not for "
        "the architecture regression"
    )


def test_a_locator_is_for_the_network_and_the_scenario_of_its_dataset_or_for_any() -> None:
    scenario = Scenario(clock_sigma_ns=70.0)
    for architecture in Architecture:
        config = TrainingConfig(model_architecture=architecture)
        own = config.locator_spec(DatasetSpec(NORTH_WEST_ITALY, scenario, 100, seed=0))
        assert (own.architecture, own.network, own.scenario) == (architecture, NORTH_WEST_ITALY, scenario)
        drawn = config.locator_spec(DatasetSpec(None, Scenario(), 100, seed=0, layouts=Layouts.random))
        assert (drawn.config, drawn.network, drawn.scenario) == (own.config, None, None)
