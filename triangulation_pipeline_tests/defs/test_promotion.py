"""Champion and challenger, in the places of production: what a new version is held against, and that nothing of it ends
the run."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from sqlalchemy import update

from triangulation_pipeline.defs.assets import model_evaluation, registered_model
from triangulation_pipeline.evaluation.verdict import EVALUATION_CHECKS, PromotionCheck
from triangulation_pipeline.network import random_network
from triangulation_pipeline.storage.registry import ModelRecord, promote_model
from triangulation_pipeline.storage.tables import models
from triangulation_pipeline_tests.conftest import cannot_run, make_home, new_bucket_name, use_s3
from triangulation_pipeline_tests.defs.conftest import Run, execute, settings
from triangulation_pipeline_tests.postgres import NO_BINARIES, find_binaries, temporary_server
from triangulation_pipeline_tests.storage.model_rows import get_model, list_models

pytestmark = pytest.mark.production

STEPS = ["receiver_network", "synthetic_dataset", "training_split", "validation_split", "test_split", "trained_model"]


@pytest.fixture(scope="module")
def champion(tmp_path_factory: pytest.TempPathFactory, s3_endpoint: str) -> Iterator[Run]:
    """A database server and a bucket with a model, and a challenger of the plain architecture that was only trained."""
    if find_binaries() is None:
        cannot_run(NO_BINARIES)
    with pytest.MonkeyPatch.context() as patch, temporary_server() as server:
        patch.setenv("DAGSTER_HOME", str(make_home(tmp_path_factory.mktemp("promotion") / "home")))
        patch.setenv("TRIANGULATION_DATABASE_URL", server.create_database().render_as_string(hide_password=False))
        use_s3(patch, s3_endpoint)
        patch.setenv("TRIANGULATION_OBJECT_STORE", f"s3://{new_bucket_name()}")
        run = execute(settings())
        assert run.result.success
        worse = execute(settings(trained_model={"model_architecture": "regression"}), STEPS, run.instance)
        assert worse.result.success
        yield run
        run.storage.close()
        run.instance.dispose()


def put_into_production(run: Run, version: int = 1, **values: Any) -> ModelRecord:
    """By hand, whatever the checks of its evaluation say."""
    with run.engine.begin() as connection:
        connection.execute(update(models).values(is_production=False))
        connection.execute(update(models).where(models.c.version == version).values(is_production=True, **values))
    return get_model(run.engine, "rf-triangulation", version)


def register(run: Run, **steps: dict[str, Any]) -> tuple[Run, dg.AssetCheckEvaluation, ModelRecord]:
    """Evaluates and registers what was trained last."""
    done = execute(settings(**steps), ["model_evaluation", "registered_model"], run.instance)
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
    assert model.promotion_reason.endswith(f" and {check.description}.")
    numbers: Any = {name: value.value for name, value in check.metadata.items()}
    assert numbers["champion_version"] == 1
    assert numbers["challenger_p95_m"] > 1.02 * numbers["champion_p95_m"]
    # The same errors on the same rows as the evaluation's.
    mine = done.metadata("registered_model")
    assert numbers["challenger_p95_m"] == pytest.approx(mine["test_p95_good_geom_m"], rel=1e-4)  # shown rounded
    first = champion.metadata("model_evaluation")
    assert numbers["champion_p95_m"] == pytest.approx(first["test_p95_good_geom_m"], rel=1e-3)
    (production,) = (found for found in list_models(champion.engine) if found.is_production)
    assert production.version == 1
    ended = champion.instance.get_run_by_id(done.run_id)
    assert ended is not None
    assert "triangulation/outcome" not in ended.tags, "a warning fails no run"


def test_worse_than_the_checks_ask_is_said_whatever_network_is_in_production(champion: Run) -> None:
    digest = put_into_production(champion).network_digest
    put_into_production(champion, network_digest="e" * 64)
    _, check, model = register(champion, model_evaluation={"max_rmse_m": 1.0})
    put_into_production(champion, network_digest=digest)
    assert not check.passed
    assert check.description == "rf-triangulation/1 in production is for another network, north-west-italy (eeeeeeee)"
    assert (model.passed, model.promoted) == (False, False)
    assert "m is above 1.0 m" in model.promotion_reason


def test_production_whose_weights_are_gone_lets_nobody_follow(champion: Run) -> None:
    objects, model = champion.storage.objects, put_into_production(champion)
    key = objects.key(model.pytorch_model_location)
    content = objects.get(key, model.sha256)
    for damage in (lambda: objects.put(key, content[:-9]), lambda: objects.delete(key)):
        damage()
        _, check, model = register(champion)
        assert (check.passed, model.promoted) == (False, False)
        why = str(check.description).replace("\\:", ":")  # in Markdown an address is made no link
        assert why.startswith(f"rf-triangulation/1 in production cannot be compared (object '{key}'")
        assert why.endswith("; restore its weights, replace it by hand, or roll back")
        assert why in model.promotion_reason
    objects.put(key, content)


def test_production_registered_again_is_not_held_against_itself(champion: Run) -> None:
    register(champion)
    put_into_production(champion, version=2)
    _, check, model = register(champion)
    assert check.passed
    assert check.description == "it is rf-triangulation/2, which was in production"
    assert model.version == 2


@pytest.fixture
def good(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every model passes the checks of its evaluation, which so small a training may not."""
    passed = [PromotionCheck(check.name, True, "it is good") for check in EVALUATION_CHECKS]
    for place in (model_evaluation, registered_model):
        monkeypatch.setattr(place, "promotion_checks", lambda *_: list(passed))


def whole(run: Run, **steps: dict[str, Any]) -> tuple[Run, dg.AssetCheckEvaluation, ModelRecord]:
    """A run of the whole graph."""
    done = execute(settings(**steps), instance=run.instance)
    assert done.result.success
    (check,) = (e for e in done.result.get_asset_check_evaluations() if e.check_name == "not_worse_than_production")
    return done, check, get_model(run.engine, "rf-triangulation")


def production(run: Run) -> int:
    (found,) = (model for model in list_models(run.engine) if model.is_production)
    return found.version


@pytest.mark.usefixtures("good")
def test_a_run_of_another_network_leaves_production_alone(champion: Run, tmp_path: Path) -> None:
    """With the default model_name; once its owner has promoted it, its network follows by itself, and the other not."""
    italian = put_into_production(champion)
    described = random_network(5, 1, lat=-37.8, lon=144.9, extent_km=60.0).model_dump(mode="json", exclude_none=True)
    file = tmp_path / "melbourne.yaml"
    file.write_text(yaml.safe_dump(described | {"name": "melbourne"}))
    there = {"receiver_network": {"network_file": str(file)}}

    done, check, model = whole(champion, **there)
    assert (model.passed, model.promoted, model.is_production) == (True, False, False)
    assert (check.passed, check.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert check.description == f"rf-triangulation/1 in production is for another network, {italian.network}"
    assert model.promotion_reason == (
        f"Not promoted: rf-triangulation/1, which is in production, is for another network, "
        f"{italian.network}, and this one for {model.network}; train it under another model_name, or replace that "
        f"version by `triangulation promote rf-triangulation/{model.version}`."
    )
    shown = done.metadata("registered_model")
    assert {name: shown[name] for name in ("promoted", "promotion_reason", "network")} == {
        "promoted": False,
        "promotion_reason": model.promotion_reason,
        "network": f"melbourne ({model.network_digest[:8]})",
    }
    assert production(champion) == 1

    promote_model(champion.engine, "rf-triangulation", model.version)
    _, check, follower = whole(champion, **there, trained_model={"seed": 1})
    assert check.metadata["champion_version"].value == model.version
    assert (follower.promoted, follower.is_production) == (check.passed, check.passed)
    in_production = production(champion)
    assert in_production in {model.version, follower.version}

    _, check, back = whole(champion, trained_model={"seed": 2})
    assert (back.network, back.passed, back.promoted, check.passed) == (italian.network, True, False, False)
    assert f"is for another network, {model.network}" in back.promotion_reason
    assert production(champion) == in_production


@pytest.mark.usefixtures("good")
def test_what_went_into_production_meanwhile_is_compared_with(champion: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two challengers at once the second meets the first, and not the champion that both looked up."""
    put_into_production(champion)
    looked_up = iter([None, put_into_production(champion)])
    monkeypatch.setattr(registered_model, "find_production_model", lambda *_: next(looked_up))
    _, check, model = register(champion)
    assert "of rf-triangulation/1 in production" in str(check.description)
    assert model.promoted == check.passed
    assert list(looked_up) == []
