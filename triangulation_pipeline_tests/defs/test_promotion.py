"""Champion and challenger: what a new version is held against, and that nothing of it ends the run."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from sqlalchemy import update

from triangulation_pipeline.storage.registry import ModelRecord, get_model, list_models
from triangulation_pipeline.storage.tables import models
from triangulation_pipeline_tests.conftest import make_home
from triangulation_pipeline_tests.defs.conftest import Run, execute, settings

STEPS = ["receiver_network", "synthetic_dataset", "training_split", "validation_split", "test_split", "trained_model"]


@pytest.fixture(scope="module")
def champion(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """A home with a model, and a challenger of the plain architecture that was only trained."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DAGSTER_HOME", str(make_home(tmp_path_factory.mktemp("promotion") / "home")))
        patch.delenv("TRIANGULATION_DATABASE_URL", raising=False)
        patch.delenv("TRIANGULATION_OBJECT_STORE", raising=False)
        run = execute(settings())
        assert run.result.success
        worse = execute(settings(trained_model={"model_architecture": "regression"}), STEPS, run.instance)
        assert worse.result.success
        yield run
        run.storage.close()
        run.instance.dispose()


def put_into_production(run: Run, version: int = 1, **values: Any) -> ModelRecord:
    """By hand: so small a training passes no calibration."""
    with run.engine.begin() as connection:
        connection.execute(update(models).values(is_production=False))
        connection.execute(update(models).where(models.c.version == version).values(is_production=True, **values))
    return get_model(run.engine, "rf-triangulation", version)


def register(run: Run) -> tuple[Run, dg.AssetCheckEvaluation, ModelRecord]:
    """Evaluates and registers what was trained last."""
    done = execute(settings(), ["model_evaluation", "registered_model"], run.instance)
    assert done.result.success
    (check,) = (e for e in done.result.get_asset_check_evaluations() if e.check_name == "not_worse_than_production")
    return done, check, get_model(run.engine, "rf-triangulation")


def test_the_first_has_nobody_to_be_held_against(champion: Run) -> None:
    (check,) = (e for e in champion.result.get_asset_check_evaluations() if e.check_name == "not_worse_than_production")
    assert (check.passed, check.description) == (True, "no version of rf-triangulation was in production")


def test_worse_than_production_is_registered_but_not_promoted(champion: Run) -> None:
    put_into_production(champion)
    done, check, model = register(champion)
    assert (check.passed, check.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert (model.version, model.is_active, model.promoted, model.is_production) == (2, True, False, False)
    assert model.promotion_reason.endswith(f"{check.description}.")
    numbers = done.metadata("registered_model")
    assert numbers["champion_version"] == 1
    assert numbers["challenger_p95_m"] > 1.02 * numbers["champion_p95_m"]
    # The same errors on the same rows as the evaluation's.
    assert numbers["challenger_p95_m"] == pytest.approx(numbers["test_p95_good_geom_m"], rel=1e-4)  # shown rounded
    first = champion.metadata("model_evaluation")
    assert numbers["champion_p95_m"] == pytest.approx(first["test_p95_good_geom_m"], rel=1e-3)
    (production,) = (found for found in list_models(champion.engine) if found.is_production)
    assert production.version == 1


def test_of_another_network_there_is_no_comparison(champion: Run) -> None:
    digest = put_into_production(champion).network_digest
    put_into_production(champion, network_digest="e" * 64)
    _, check, _ = register(champion)
    put_into_production(champion, network_digest=digest)
    assert check.passed
    assert check.description == (
        "version 1 in production cannot be compared, being for the network north-west-italy (eeeeeeee)"
    )


def test_production_whose_weights_are_gone_lets_nobody_follow(champion: Run) -> None:
    file = Path(put_into_production(champion).pytorch_model_location)
    content = file.read_bytes()
    for damage in (lambda: file.write_bytes(content[:-9]), file.unlink):
        damage()
        _, check, model = register(champion)
        assert (check.passed, model.promoted) == (False, False)
        assert str(check.description).startswith("version 1 in production cannot be compared, as its weights cannot")
        assert str(check.description) in model.promotion_reason
    file.write_bytes(content)


def test_production_registered_again_is_not_held_against_itself(champion: Run) -> None:
    register(champion)
    put_into_production(champion, version=2)
    _, check, model = register(champion)
    assert check.passed
    assert check.description == "it is version 2, which was in production"
    assert model.version == 2
