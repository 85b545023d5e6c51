"""What the sensors and the schedule decide, seen as the functions they are; ``test_launches_once`` sees them launch."""

import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import dagster as dg
import pytest
import yaml
from dagster._core.test_utils import create_run_for_test
from sqlalchemy import Engine

from triangulation_pipeline.definitions import defs, train_locator_job
from triangulation_pipeline.defs.automation import conditions, runs, schedule, sensors
from triangulation_pipeline.defs.automation.settings import read_automation_settings
from triangulation_pipeline.defs.config import check_run_config
from triangulation_pipeline.defs.resources import Storage
from triangulation_pipeline.jobs.continuation import start_job
from triangulation_pipeline.network import NORTH_WEST_ITALY, ReceiverNetwork, random_network
from triangulation_pipeline.physics.layout import Layouts
from triangulation_pipeline.storage.datasets import DatasetRecord, write_dataset
from triangulation_pipeline.storage.registry import NewModel, register_model
from triangulation_pipeline.training.config import TrainingConfig
from triangulation_pipeline_tests.storage.conftest import a_spec, make_batch

OTHER = random_network(5, seed=1)


@pytest.fixture
def instance(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dg.DagsterInstance]:
    for name in ("RUN_CONFIG", "NETWORK_FILE", "NETWORK_FOLDER", "RETRAIN_CRON", "RETRAIN_TIMEZONE"):
        monkeypatch.delenv(f"TRIANGULATION_{name}", raising=False)
    with dg.DagsterInstance.get() as found:
        yield found


@pytest.fixture
def engine(instance: dg.DagsterInstance) -> Iterator[Engine]:
    storage = Storage()
    yield storage.engine
    storage.close()


def add_dataset(
    engine: Engine, network: ReceiverNetwork | None = NORTH_WEST_ITALY, layouts: Layouts = Layouts.own
) -> DatasetRecord:
    spec = replace(a_spec(), network=network, layouts=layouts)
    record, _ = write_dataset(
        engine,
        spec,
        name=f"dataset-{spec.dataset_id[:8]}",
        batches=[make_batch(0, 10, spec.num_sites)],
        quality_metrics=dict,
    )
    return record


def train(engine: Engine, dataset: DatasetRecord) -> str:
    job_id = str(uuid.uuid4())
    start_job(engine, job_id=job_id, run_id=job_id, config=TrainingConfig(), synthetic_dataset_id=dataset.id)
    return job_id


def write_network(path: Path, network: ReceiverNetwork) -> None:
    path.write_text(yaml.safe_dump(network.model_dump(mode="json", exclude_none=True)))


def write_run_config(path: Path, **steps: dict[str, Any]) -> None:
    path.write_text(yaml.safe_dump({"ops": {step: {"config": config} for step, config in steps.items()}}))


def schedule_tick(instance: dg.DagsterInstance, time: datetime) -> dg.RunRequest | str | None:
    """The run asked for, or why there is none."""
    repository = defs.get_repository_def()
    context = dg.build_schedule_context(instance, scheduled_execution_time=time, repository_def=repository)
    found = schedule.make_periodic_retraining(read_automation_settings())(context)
    return found.skip_message if isinstance(found, dg.SkipReason) else found


def tick(
    sensor: dg.SensorDefinition, instance: dg.DagsterInstance, cursor: str | None
) -> tuple[list[dg.RunRequest], str | None, str | None]:
    """The runs asked for, the cursor afterwards and why there are none."""
    resources = {"storage": Storage()}
    with dg.build_sensor_context(instance, cursor, definitions=defs, resources=resources) as context:
        found = sensor(context)
    if isinstance(found, dg.SkipReason):
        return [], cursor, found.skip_message
    assert isinstance(found, dg.SensorResult)
    reason = None if found.skip_reason is None else found.skip_reason.skip_message
    return list(found.run_requests or []), found.cursor, reason


def test_dataset_written_after_the_sensor_was_turned_on_is_trained_on_once(
    instance: dg.DagsterInstance, engine: Engine
) -> None:
    add_dataset(engine)
    requests, cursor, reason = tick(sensors.new_dataset, instance, None)
    assert (requests, reason) == ([], "from now on: datasets without a training that exist are left alone (1)")
    assert tick(sensors.new_dataset, instance, cursor)[2] == "there is no new dataset"

    first, second = add_dataset(engine), add_dataset(engine)
    (request,), cursor, _ = tick(sensors.new_dataset, instance, cursor)
    assert request.run_key == f"dataset:{first.id}"
    assert request.run_config == {"ops": {"synthetic_dataset": {"config": {"dataset_id": first.id}}}}
    assert request.tags == {
        "triangulation/reason": f"new dataset {first.name}",
        "triangulation/network": "north-west-italy (491d2d57)",
        "triangulation/model_name": "rf-triangulation",
        "triangulation/job_name": "training",
    }
    dg.validate_run_config(defs.resolve_job_def("train_locator"), request.run_config)
    check_run_config(request.run_config)

    train(engine, first)
    (request,), cursor, _ = tick(sensors.new_dataset, instance, cursor)
    assert request.run_key == f"dataset:{second.id}"
    # Of what has a training nothing is remembered.
    assert first.id not in str(cursor)
    assert second.id in str(cursor)
    # Its run may have failed before it had a job: it is not tried for ever.
    assert tick(sensors.new_dataset, instance, cursor)[2] == "there is no new dataset"


def test_dataset_of_a_training_is_left_to_it(instance: dg.DagsterInstance, engine: Engine) -> None:
    _, cursor, _ = tick(sensors.new_dataset, instance, None)
    run = create_run_for_test(instance, "train_locator", status=dg.DagsterRunStatus.STARTED)
    dataset = add_dataset(engine)
    requests, after, reason = tick(sensors.new_dataset, instance, cursor)
    assert (requests, after) == ([], cursor)
    assert reason == f"run {run.run_id} trains a model (started): one at a time"
    train(engine, dataset)
    instance.report_run_canceled(run)
    assert tick(sensors.new_dataset, instance, cursor)[2] == "there is no new dataset"


def test_dataset_of_another_network_waits_for_its_network(
    instance: dg.DagsterInstance, engine: Engine, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, cursor, _ = tick(sensors.new_dataset, instance, None)
    dataset = add_dataset(engine, OTHER)
    requests, cursor, reason = tick(sensors.new_dataset, instance, cursor)
    assert requests == []
    assert reason == (
        f"new datasets are of another network than north-west-italy ({NORTH_WEST_ITALY.digest[:8]}): "
        f"{dataset.name} of random-5-1"
    )
    write_run_config(home / "run.yaml", receiver_network={"network_file": "sites.yaml"})
    monkeypatch.setenv("TRIANGULATION_RUN_CONFIG", "run.yaml")
    assert tick(sensors.new_dataset, instance, cursor)[2] == (
        f"TRIANGULATION_RUN_CONFIG: receiver_network: network file {home}/sites.yaml does not exist"
    )
    write_network(home / "sites.yaml", OTHER)
    (request,), _, _ = tick(sensors.new_dataset, instance, cursor)
    assert request.run_config["ops"] == {
        "receiver_network": {"config": {"network_file": f"{home}/sites.yaml"}},
        "synthetic_dataset": {"config": {"dataset_id": dataset.id}},
    }


def test_datasets_over_random_networks_are_for_runs_that_ask_for_them(
    instance: dg.DagsterInstance, engine: Engine, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, cursor, _ = tick(sensors.new_dataset, instance, None)
    own, random = add_dataset(engine), add_dataset(engine, None, Layouts.random)
    (request,), _, _ = tick(sensors.new_dataset, instance, cursor)
    assert request.run_config["ops"]["synthetic_dataset"]["config"] == {"dataset_id": own.id}
    write_run_config(home / "run.yaml", synthetic_dataset={"layouts": "random"})
    monkeypatch.setenv("TRIANGULATION_RUN_CONFIG", "run.yaml")
    (request,), _, _ = tick(sensors.new_dataset, instance, cursor)
    assert request.run_config["ops"]["synthetic_dataset"]["config"] == {"dataset_id": random.id}
    assert request.tags["triangulation/network"] == f"random layouts ({random.network_digest[:8]})"


@pytest.mark.parametrize(
    ("job_name", "selection", "busy"),
    [
        ("train_locator", None, True),
        ("__ASSET_JOB", {"trained_model", "model_evaluation"}, True),
        ("train_locator", {"receiver_network", "synthetic_dataset"}, False),
        ("another_job", None, False),
    ],
)
def test_which_runs_train(instance: dg.DagsterInstance, job_name: str, selection: set[str] | None, busy: bool) -> None:
    keys = None if selection is None else {dg.AssetKey(name) for name in selection}
    run = create_run_for_test(instance, job_name, status=dg.DagsterRunStatus.STARTING, asset_selection=keys)
    assert (runs.training_under_way(instance) is not None) == busy
    instance.report_run_canceled(run)
    assert runs.training_under_way(instance) is None


@pytest.mark.parametrize("status", [dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.CANCELING])
def test_a_training_is_under_way_from_when_it_is_made_until_it_has_ended(
    instance: dg.DagsterInstance, status: dg.DagsterRunStatus
) -> None:
    run = create_run_for_test(instance, "train_locator", status=status)
    busy = f"run {run.run_id} trains a model ({status.value.lower()}): one at a time"
    assert runs.training_under_way(instance) == busy
    assert runs.training_under_way(instance, but_for="another") == busy
    instance.report_run_failed(run)
    assert runs.training_under_way(instance) is None


AFTER_TRAINING = {"model_evaluation", "registered_model"}


def test_a_model_that_was_trained_alone_is_evaluated_and_registered_once_its_check_has_passed() -> None:
    """As the daemon decides it; ``test_evaluate_and_register`` sees it launch."""
    with dg.DagsterInstance.ephemeral() as instance:
        cursor = None

        def asked() -> set[str]:
            nonlocal cursor
            selection = dg.AssetSelection.assets(*AFTER_TRAINING)
            found = dg.evaluate_automation_conditions(defs, instance, selection, cursor=cursor)
            cursor = found.cursor
            return {name for name in AFTER_TRAINING if found.get_num_requested(dg.AssetKey(name))}

        def make(*names: str) -> None:
            for name in names:
                instance.report_runless_asset_event(dg.AssetMaterialization(name))

        def check(passed: bool, asset: str = "trained_model", name: str = "checkpoint_is_sound") -> None:
            names = {"asset_key": dg.AssetKey(asset), "check_name": name}
            instance.report_runless_asset_event(dg.AssetCheckEvaluation(**names, passed=passed, blocking=True))

        before = ("receiver_network", "synthetic_dataset", "training_split", "validation_split", "test_split")
        make(*before, "trained_model")
        check(True, "training_split", "splits_disjoint_and_complete")
        check(True)
        make("model_evaluation", "registered_model")
        assert asked() == set()
        make(*before)
        check(True, "training_split", "splits_disjoint_and_complete")
        assert asked() == set(), "a new dataset alone leaves the models alone"
        make("trained_model")
        check(False)
        assert asked() == set(), "its weights are not those that were trained"
        make("trained_model")
        check(True)
        assert asked() == AFTER_TRAINING
        assert asked() == set()
    assert conditions.evaluate_and_register.run_tags == {"triangulation/reason": "trained_model was materialised alone"}


def test_changed_network_file(
    instance: dg.DagsterInstance, engine: Engine, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sensor, path = sensors.network_file_changed, home / "sites.yaml"
    for text in (None, "", "ops: {receiver_network: {config: {}}}"):
        if text is not None:
            (home / "run.yaml").write_text(text)
            monkeypatch.setenv("TRIANGULATION_RUN_CONFIG", "run.yaml")
        assert str(tick(sensor, instance, None)[2]).startswith("TRIANGULATION_RUN_CONFIG names no network_file")
    write_run_config(home / "run.yaml", receiver_network={"network_file": str(path)})
    refusal = f"TRIANGULATION_RUN_CONFIG: receiver_network: network file {path} does not exist"
    assert tick(sensor, instance, None)[1:] == (None, refusal)

    write_network(path, NORTH_WEST_ITALY)
    requests, cursor, reason = tick(sensor, instance, None)
    assert (requests, cursor) == ([], NORTH_WEST_ITALY.digest)
    assert reason == f"north-west-italy ({NORTH_WEST_ITALY.digest[:8]}) has not changed"
    path.write_text("# the same sites\n" + path.read_text())
    assert tick(sensor, instance, cursor)[0] == []
    path.write_text("name: [")
    assert f"network file {path}: not valid YAML: line 1" in str(tick(sensor, instance, cursor)[2])

    write_network(path, OTHER)
    run = create_run_for_test(instance, "train_locator", status=dg.DagsterRunStatus.STARTING)
    assert tick(sensor, instance, cursor)[1:] == (
        cursor,
        f"run {run.run_id} trains a model (starting): one at a time",
    )
    instance.report_run_canceled(run)
    (request,), cursor, _ = tick(sensor, instance, cursor)
    assert request.run_key == f"network:{OTHER.digest}:{path.stat().st_mtime_ns}"
    assert request.run_config == {"ops": {"receiver_network": {"config": {"network_file": str(path)}}}}
    assert request.tags == {
        "triangulation/reason": f"network random-5-1 is {OTHER.digest[:8]}, was {NORTH_WEST_ITALY.digest[:8]}",
        "triangulation/network": f"random-5-1 ({OTHER.digest[:8]})",
        "triangulation/model_name": "rf-triangulation",
        "triangulation/job_name": "training",
    }
    assert cursor == OTHER.digest
    assert tick(sensor, instance, cursor)[0] == []

    keys = {request.run_key}
    for network in (NORTH_WEST_ITALY, OTHER):
        write_network(path, network)
        (request,), cursor, _ = tick(sensor, instance, cursor)
        keys.add(request.run_key)
    assert len(keys) == 3, "changed back is changed too"


def test_first_tick_compares_the_network_with_productions(
    instance: dg.DagsterInstance, engine: Engine, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {"receiver_network": {"network_file": "sites.yaml"}, "registered_model": {"model_name": "mine"}}
    write_run_config(home / "run.yaml", **names)
    monkeypatch.setenv("TRIANGULATION_RUN_CONFIG", "run.yaml")
    dataset = add_dataset(engine)
    register_model(
        engine,
        NewModel(
            model_name="mine",
            model_architecture="triangulation",
            pytorch_model_location="nowhere",
            sha256="a" * 64,
            weights_digest="a" * 64,
            epoch=1,
            trained_by_job_id=train(engine, dataset),
            synthetic_dataset_id=dataset.id,
            network_name=NORTH_WEST_ITALY.name,
            network_digest=NORTH_WEST_ITALY.digest,
            hyperparameters={},
            metrics={},
            passed=True,
            promotion_reason="",
        ),
    )
    write_network(home / "sites.yaml", NORTH_WEST_ITALY)
    assert tick(sensors.network_file_changed, instance, None)[:2] == ([], NORTH_WEST_ITALY.digest)
    write_network(home / "sites.yaml", OTHER)
    (request,), cursor, _ = tick(sensors.network_file_changed, instance, None)
    assert request.run_key is not None
    assert request.run_key.startswith(f"network:{OTHER.digest}:")
    assert cursor == OTHER.digest


def test_each_retraining_has_a_seed_of_its_own(instance: dg.DagsterInstance) -> None:
    rome = ZoneInfo("Europe/Rome")
    # 2:30 comes twice on this night.
    times = [datetime(2026, 10, 25, 2, 30, tzinfo=rome, fold=fold) for fold in (0, 1)]
    requests = []
    for time in times:
        request = schedule_tick(instance, time)
        assert isinstance(request, dg.RunRequest)
        check_run_config(request.run_config)
        requests.append(request)
    assert [request.run_config for request in requests] == [
        {"ops": {"synthetic_dataset": {"config": {"seed": seed}}}} for seed in (202610250030, 202610250130)
    ]
    assert [request.tags for request in requests] == [
        {
            "triangulation/reason": f"scheduled for 2026-10-25 {hour}:30 UTC",
            "triangulation/network": "north-west-italy (491d2d57)",
            "triangulation/model_name": "rf-triangulation",
            "triangulation/job_name": "training",
        }
        for hour in ("00", "01")
    ]
    assert [request.run_key for request in requests] == [
        f"scheduled:2026-10-25T{hour}:30:00+00:00" for hour in ("00", "01")
    ]

    run = create_run_for_test(instance, "train_locator", status=dg.DagsterRunStatus.STARTING)
    assert schedule_tick(instance, times[0]) == f"run {run.run_id} trains a model (starting): one at a time"

    # But its own run, where the daemon was killed between making and queueing it.
    instance.report_run_canceled(run)
    tags = {"dagster/run_key": str(requests[0].run_key)}
    create_run_for_test(instance, "train_locator", status=dg.DagsterRunStatus.NOT_STARTED, tags=tags)
    assert schedule_tick(instance, times[0]) == requests[0]


MINE: dict[str, dict[str, Any]] = {
    "synthetic_dataset": {"preset": "valley", "num_samples": 2000, "seed": 7, "dataset_id": ""},
    "trained_model": {"epochs": 3, "job_name": "the yearly one"},
    "registered_model": {"model_name": "mine"},
}


def test_all_automatic_runs_take_the_settings_of_the_run_config(
    instance: dg.DagsterInstance, engine: Engine, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own model, network, preset; the network file lies beside it."""
    folder = tmp_path / "mine"
    folder.mkdir()
    write_network(folder / "sites.yaml", OTHER)
    write_run_config(folder / "run.yaml", **MINE, receiver_network={"network_file": "sites.yaml"})
    _, cursor, _ = tick(sensors.new_dataset, instance, None)
    monkeypatch.setenv("TRIANGULATION_RUN_CONFIG", str(folder / "run.yaml"))
    dataset = add_dataset(engine, OTHER)

    (of_dataset,), _, _ = tick(sensors.new_dataset, instance, cursor)
    (of_network,), _, _ = tick(sensors.network_file_changed, instance, NORTH_WEST_ITALY.digest)
    of_clock = schedule_tick(instance, datetime(2026, 11, 1, 3, 0, tzinfo=ZoneInfo("UTC")))
    assert isinstance(of_clock, dg.RunRequest)
    named = MINE | {"receiver_network": {"network_file": str(folder / "sites.yaml")}}
    for request, changed in (
        (of_dataset, {"synthetic_dataset": {"dataset_id": dataset.id}}),
        (of_network, {}),
        (of_clock, {"synthetic_dataset": MINE["synthetic_dataset"] | {"seed": 202611010300}}),
    ):
        config = {step: entry["config"] for step, entry in request.run_config["ops"].items()}
        assert config == named | changed
        dg.validate_run_config(defs.resolve_job_def("train_locator"), request.run_config)
        check_run_config(request.run_config)
        assert request.tags["triangulation/model_name"] == "mine"
        assert request.tags["triangulation/job_name"] == "the yearly one"
        assert request.tags["triangulation/network"] == f"random-5-1 ({OTHER.digest[:8]})"


WRONG = {
    "none.yaml": (None, "{home}/none.yaml does not exist"),
    "list.yaml": ("[1]", "{home}/list.yaml must hold Dagster run config"),
    "syntax.yaml": ("ops: [", "{home}/syntax.yaml: not valid YAML: line 1"),
    "name.yaml": ("ops: {registered_model: {config: {model_nam: x}}}", 'unexpected config entry "model_nam"'),
    "range.yaml": ("ops: {trained_model: {config: {epochs: 0}}}", "trained_model: epochs: Input should be greater"),
    "env.yaml": ("ops: {trained_model: {config: {job_name: {env: HOME}}}}", "{{env: 'HOME'}} is not taken"),
    "dataset.yaml": (
        "ops: {synthetic_dataset: {config: {dataset_id: 6f1c2c5e-3a52-4d8a-8a0c-0d3f7a3a9b11}}}",
        "synthetic_dataset: leave out dataset_id; automatic runs choose their dataset",
    ),
    "outside.yaml": (
        "ops: {receiver_network: {config: {network_file: /etc/hosts}}}",
        "receiver_network: network file /etc/hosts lies outside {home}/networks",
    ),
}


def skips(instance: dg.DagsterInstance, cursor: str | None) -> set[str | None]:
    """Why each of the three launches nothing."""
    found = {tick(sensor, instance, cursor)[2] for sensor in (sensors.new_dataset, sensors.network_file_changed)}
    last = schedule_tick(instance, datetime(2026, 11, 1, 3, 0, tzinfo=ZoneInfo("UTC")))
    assert not isinstance(last, dg.RunRequest)
    return found | {last}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_run_config_is_a_skip_reason_and_seen_at_load(
    instance: dg.DagsterInstance,
    home: Path,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    text, sentence = WRONG[name]
    if text is not None:
        (home / name).write_text(text)
    _, cursor, _ = tick(sensors.new_dataset, instance, None)
    monkeypatch.setenv("TRIANGULATION_RUN_CONFIG", name)
    monkeypatch.setenv("TRIANGULATION_NETWORK_FOLDER", "networks")
    (told,) = skips(instance, cursor)
    assert told is not None
    assert told.startswith("TRIANGULATION_RUN_CONFIG: ")
    assert sentence.format(home=home) in told
    assert "\n" not in told
    assert len(told) < 500
    runs.warn_of_wrong_run_config(train_locator_job)
    assert caplog.messages == [f"automatic runs will be skipped: {told}"]


def test_gpu_of_the_runs_is_not_looked_for_here(
    instance: dg.DagsterInstance, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A code server has none where each run is a pod of its own."""
    write_run_config(home / "run.yaml", trained_model={"accelerator": "gpu"})
    monkeypatch.setenv("TRIANGULATION_RUN_CONFIG", "run.yaml")
    assert isinstance(schedule_tick(instance, datetime(2026, 11, 1, 3, 0, tzinfo=ZoneInfo("UTC"))), dg.RunRequest)


def test_the_former_variable_is_refused_and_says_what_to_do(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, cursor, _ = tick(sensors.new_dataset, instance, None)
    monkeypatch.setenv("TRIANGULATION_NETWORK_FILE", "sites.yaml")
    assert skips(instance, cursor) == {
        "TRIANGULATION_NETWORK_FILE is no longer read: write 'ops: {receiver_network: {config: {network_file: "
        "mine.yaml}}}' into a file, name that file by TRIANGULATION_RUN_CONFIG, and unset TRIANGULATION_NETWORK_FILE"
    }
    monkeypatch.setenv("TRIANGULATION_NETWORK_FILE", "")
    assert isinstance(schedule_tick(instance, datetime(2026, 11, 1, 3, 0, tzinfo=ZoneInfo("UTC"))), dg.RunRequest)


@pytest.mark.parametrize("wrong", [True, False])
def test_code_location_loads_with_any_run_config(home: Path, monkeypatch: pytest.MonkeyPatch, wrong: bool) -> None:
    write_run_config(home / "run.yaml", trained_model={"epochs": 0 if wrong else 3})
    monkeypatch.setenv("TRIANGULATION_RUN_CONFIG", "run.yaml")
    code = "import triangulation_pipeline.definitions as found; print(len(found.defs.sensors))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "4\n"
    assert ("automatic runs will be skipped: TRIANGULATION_RUN_CONFIG: trained_model" in done.stderr) == wrong


def test_retraining_takes_cron_and_time_zone_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CRON", "TIMEZONE"):
        monkeypatch.setenv(f"TRIANGULATION_RETRAIN_{name}", "")  # as a compose file leaves it
    settings = read_automation_settings()
    assert (settings.retrain_cron, settings.retrain_timezone) == ("0 3 * * 0", "UTC")
    monkeypatch.setenv("TRIANGULATION_RETRAIN_CRON", "30 4 1 * *")
    monkeypatch.setenv("TRIANGULATION_RETRAIN_TIMEZONE", "Europe/Rome")
    code = (
        "from triangulation_pipeline.definitions import defs\n"
        "(found,) = defs.get_repository_def().schedule_defs\n"
        "print(found.cron_schedule, found.execution_timezone)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "30 4 1 * * Europe/Rome\n"


@pytest.mark.parametrize(
    ("variable", "value", "sentence"),
    [
        ("CRON", "every week", "must be five cron fields, as in '0 3 * * 0' (Sundays at 3:00), got 'every week'"),
        ("CRON", "* * * * * *", "must be five cron fields, as in '0 3 * * 0' (Sundays at 3:00), got '* * * * * *'"),
        ("TIMEZONE", "Mars/Olympus", "must be the name of a time zone, as in Europe/Rome, got 'Mars/Olympus'"),
        (
            "CRON",
            "secret" * 1000,
            "must be five cron fields, as in '0 3 * * 0' (Sundays at 3:00), "
            f"got '{'secret' * 10}'... (6,000 characters)",
        ),
        ("TIMEZONE", "a\x1b[2J", "must be the name of a time zone, as in Europe/Rome, got 'a\\x1b[2J'"),
        ("TIMEZONE", "../../etc/passwd", "must be the name of a time zone, as in Europe/Rome, got '../../etc/passwd'"),
    ],
)
def test_wrong_settings_are_one_sentence(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, sentence: str
) -> None:
    monkeypatch.setenv(f"TRIANGULATION_RETRAIN_{variable}", value)
    with pytest.raises(ValueError, match="must be") as refusal:
        read_automation_settings()
    assert str(refusal.value) == f"TRIANGULATION_RETRAIN_{variable} {sentence}"


def test_the_home_of_an_unknown_user_is_no_place_of_run_config(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIANGULATION_RUN_CONFIG", "~nobody-of-this-name/run.yaml")
    with pytest.raises(ValueError, match=r"^TRIANGULATION_RUN_CONFIG .*there is no user of that name$"):
        read_automation_settings()
