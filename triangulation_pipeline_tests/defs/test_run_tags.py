"""By what a run is told apart in Dagster's lists, and what it says where it failed."""

import logging
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from triangulation_pipeline.definitions import train_locator_job
from triangulation_pipeline.defs.config import settings_of
from triangulation_pipeline.defs.io_managers import ModelReference, ReferenceIOManager
from triangulation_pipeline.defs.resources import Storage
from triangulation_pipeline.defs.run_tags import outcome_tags, resumed_tags, run_tags
from triangulation_pipeline.jobs import liveness
from triangulation_pipeline.jobs.states import request_stop
from triangulation_pipeline.network import NORTH_WEST_ITALY
from triangulation_pipeline.storage.tables import Stop
from triangulation_pipeline_tests.defs.conftest import Run, execute, settings
from triangulation_pipeline_tests.defs.test_life_cycle import when_epochs_are_done

NETWORK = f"north-west-italy ({NORTH_WEST_ITALY.digest[:8]})"


def tags_of(run: Run) -> dict[str, str]:
    found = run.instance.get_run_by_id(run.run_id)
    assert found is not None
    return {key: value for key, value in found.tags.items() if key.startswith("triangulation/")}


def lines_of(run: Run) -> list[str]:
    """The lines that are no events of Dagster's."""
    return [entry.user_message for entry in run.instance.all_logs(run.run_id) if entry.dagster_event is None]


def test_a_run_is_tagged_by_its_first_step_with_what_it_makes(home: Path) -> None:
    run = execute(settings(trained_model={"job_name": "Hügel 3"}, registered_model={"model_name": "hills"}))
    assert run.result.success
    assert tags_of(run) == {
        "triangulation/network": NETWORK,
        "triangulation/model_name": "hills",
        "triangulation/job_name": "Hügel 3",
    }
    alone = execute(settings(), ["receiver_network"], run.instance)
    assert tags_of(alone) == {"triangulation/network": NETWORK}
    training = execute(settings(), ["trained_model"], run.instance)
    assert tags_of(training) == {"triangulation/network": NETWORK, "triangulation/job_name": "training"}
    evaluation = execute(settings(), ["model_evaluation"], run.instance)
    assert tags_of(evaluation) == {"triangulation/network": NETWORK}


def test_what_is_known_before_the_first_step_are_the_same_tags() -> None:
    assert run_tags(settings_of({}), NORTH_WEST_ITALY) == {
        "triangulation/network": NETWORK,
        "triangulation/model_name": "rf-triangulation",
        "triangulation/job_name": "training",
    }
    assert (
        run_tags(settings_of({"ops": {"trained_model": {"config": {"job_name": "a"}}}}))["triangulation/job_name"]
        == "a"
    )


def test_a_run_has_the_tags_of_what_it_makes_alone() -> None:
    config = {"ops": {"registered_model": {"config": {"model_name": "mine"}}}}
    job_name, model_name = {"triangulation/job_name": "training"}, {"triangulation/model_name": "mine"}
    for selected, tags in (
        (None, job_name | model_name),
        (set(), job_name | model_name),
        ({"trained_model", "test_split"}, job_name),
        ({"registered_model"}, model_name),
        ({"synthetic_dataset"}, {}),
    ):
        keys = None if selected is None else {dg.AssetKey(name) for name in selected}
        assert run_tags(settings_of(config), None, keys) == tags
    with pytest.raises(ValueError, match="model_name"):
        run_tags(settings_of({"ops": {"registered_model": {"config": {"model_name": "/"}}}}))


def test_names_in_tags_are_printable() -> None:
    network = NORTH_WEST_ITALY.model_copy(update={"name": "a\u202eb"})
    tags = run_tags(settings_of({"ops": {"trained_model": {"config": {"job_name": "c\u200cd"}}}}), network)
    assert tags["triangulation/network"] == f"a\\u202eb ({network.digest[:8]})"
    assert tags["triangulation/job_name"] == "c\\u200cd"


def test_a_long_reason_is_cut_for_the_tag() -> None:
    told = outcome_tags("failed", "word " * 200)["triangulation/outcome_reason"]
    assert (told, len(told)) == ("word " * 60 + "...", 303)


def test_a_run_that_goes_on_says_from_which() -> None:
    before = outcome_tags("paused", "paused at epoch 3 of 9")
    run = dg.DagsterRun("train_locator", parent_run_id="the-run-before", root_run_id="the-first", tags=before)
    assert resumed_tags(run) == {
        "triangulation/outcome": "resumed",
        "triangulation/outcome_reason": "goes on from run the-run-before",
    }
    assert resumed_tags(dg.DagsterRun("train_locator", parent_run_id="the-run-before", root_run_id="the-first")) == {}


def raises(error: BaseException, cause: BaseException | None = None) -> Callable[[], Any]:
    def act() -> None:
        raise error from cause

    return act


def finds(passed: bool) -> Callable[[], Any]:
    """What a check beside the step finds."""
    return lambda: dg.AssetCheckResult(passed=passed, description="it is so")


def run_of_a_step(act: Callable[[], Any], *, blocking: bool = False) -> tuple[dg.DagsterInstance, str]:
    """A run of one step with the resources of ours, in which that happens."""

    @dg.asset(
        io_manager_key="references",
        check_specs=[dg.AssetCheckSpec("found", asset="step", blocking=blocking)],
        dagster_type=dg.PythonObjectDagsterType(ModelReference),
    )
    def step(storage: Storage) -> dg.MaterializeResult:
        result = act() or dg.AssetCheckResult(passed=True)
        return dg.MaterializeResult(value=ModelReference(model_id="m"), check_results=[result])

    storage = Storage()
    instance, run_id = dg.DagsterInstance.ephemeral(), str(uuid.uuid4())
    job = dg.Definitions(
        [step],
        jobs=[dg.define_asset_job("one")],
        resources={"storage": storage, "references": ReferenceIOManager(storage=storage)},
    ).resolve_job_def("one")
    job.execute_in_process(instance=instance, run_id=run_id, raise_on_error=False)
    return instance, run_id


PAUSED = dg.Failure("paused at epoch 3", metadata={"outcome": "paused"})
CANCELLED = dg.Failure("cancelled at epoch 3", metadata={"outcome": "cancelled"})


@pytest.mark.parametrize(
    ("act", "blocking", "outcome", "told", "level"),
    [
        (raises(dg.Failure("it is bad")), False, "failed", "step: it is bad", logging.ERROR),
        (raises(PAUSED), False, "paused", "paused at epoch 3", logging.WARNING),
        (raises(CANCELLED), False, "cancelled", "cancelled at epoch 3", logging.WARNING),
        (raises(RuntimeError("outer"), OSError("inner")), False, "failed", "step: OSError: inner", logging.ERROR),
        (finds(False), True, "failed", "found: it is so", logging.ERROR),
        (finds(False), False, None, None, None),
        (finds(True), True, None, None, None),
        (raises(KeyboardInterrupt()), False, None, None, None),
    ],
    ids=["refused", "paused", "cancelled", "broken", "blocking check", "check", "passed", "terminated"],
)
def test_how_a_run_ends_is_said_once_in_its_tags_and_its_events(
    act: Callable[[], Any], blocking: bool, outcome: str | None, told: str | None, level: int | None
) -> None:
    instance, run_id = run_of_a_step(act, blocking=blocking)
    run = instance.get_run_by_id(run_id)
    assert run is not None
    tags = {key: value for key, value in run.tags.items() if key.startswith("triangulation/")}
    assert tags == ({} if outcome is None or told is None else outcome_tags(outcome, told))
    lines = [entry for entry in instance.all_logs(run_id) if entry.dagster_event is None]
    said = [(entry.user_message, entry.level) for entry in lines if entry.level >= logging.WARNING]
    assert said == ([] if told is None else [(told, level)])


def test_a_failed_run_ends_with_its_sentence_and_has_it_as_a_tag(home: Path) -> None:
    run = execute(settings(trained_model={"epochs": 0}))
    told = "receiver_network: trained_model: epochs: Input should be greater than or equal to 1 (got 0)"
    *before, last = lines_of(run)
    assert last == told
    assert before[-1].endswith("Not executing.")
    assert {key: value for key, value in tags_of(run).items() if "outcome" in key} == {
        "triangulation/outcome": "failed",
        "triangulation/outcome_reason": told,
    }


def test_a_failed_step_shows_no_chain_of_what_was_raised_but_where(home: Path, tmp_path: Path) -> None:
    run = execute(settings(receiver_network={"network_file": str(tmp_path / "none.yaml")}), ["receiver_network"])
    (event,) = (e for e in run.result.all_events if e.is_step_failure)
    data = event.step_failure_data
    assert data.error is not None
    assert (data.error.cause, data.error.context) == (None, None)
    assert data.user_failure_data is not None
    (raised_in,) = (value.value for name, value in data.user_failure_data.metadata.items() if name == "raised_in")
    assert str(raised_in).startswith("defs/config.py:")
    assert str(raised_in).endswith("(check_run_config), ValueError")


def test_a_failed_blocking_check_is_what_the_run_ends_with(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("triangulation_pipeline.training.verify.fault", lambda *_: "weights are not finite: a")
    run = execute(settings())
    assert not run.result.success
    assert lines_of(run)[-1] == "checkpoint_is_sound: weights are not finite: a"
    assert tags_of(run)["triangulation/outcome"] == "failed"


@pytest.mark.parametrize(("stop", "outcome"), [(Stop.pause, "paused"), (Stop.cancel, "cancelled")])
def test_a_run_that_was_stopped_says_so_and_the_one_that_goes_on_from_it_too(
    home: Path, monkeypatch: pytest.MonkeyPatch, stop: Stop, outcome: str
) -> None:
    monkeypatch.setattr(liveness, "HEARTBEAT_S", 0.02)
    instance, engine, run_id = dg.DagsterInstance.get(), Storage().engine, str(uuid.uuid4())
    long = settings(trained_model={"epochs": 300, "early_stop_patience": 0})
    with when_epochs_are_done(engine, run_id, 1, lambda: request_stop(engine, run_id, stop)):
        run = execute(long, instance=instance, run_id=run_id)
    engine.dispose()
    assert not run.result.success
    tags = tags_of(run)
    assert tags["triangulation/outcome"] == outcome
    assert tags["triangulation/outcome_reason"].startswith(f"{outcome} at epoch ")
    assert f"`triangulation resume {run.run_id}` goes on from there" in tags["triangulation/outcome_reason"]
    assert lines_of(run)[-1] == tags["triangulation/outcome_reason"]


def test_a_run_that_goes_on_from_a_failed_one_does_not_keep_its_outcome(home: Path) -> None:
    failed = execute(settings(trained_model={"epochs": 0}))
    # As the UI does it: the tags of the run before are copied.
    inherited = tags_of(failed) | {"dagster/parent_run_id": failed.run_id}
    result = train_locator_job().execute_in_process(
        instance=failed.instance, run_config=settings(), tags=inherited, raise_on_error=False
    )
    again = Run(result, failed.instance, failed.storage)
    assert result.success
    assert tags_of(again)["triangulation/outcome"] == "resumed"
    assert "trained_model" not in tags_of(again)["triangulation/outcome_reason"]
