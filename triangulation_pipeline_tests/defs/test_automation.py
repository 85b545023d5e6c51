"""What the sensors and the schedule decide, seen as the functions they are; ``test_launches_once`` sees them launch."""

import subprocess
import sys
import uuid
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import dagster as dg
import pytest
import yaml
from dagster._core.test_utils import create_run_for_test
from sqlalchemy import Engine

from triangulation_pipeline.definitions import defs
from triangulation_pipeline.defs import automation
from triangulation_pipeline.defs.config import check_run_config
from triangulation_pipeline.defs.resources import OpenStorage, Storage
from triangulation_pipeline.network import NORTH_WEST_ITALY, ReceiverNetwork, random_network
from triangulation_pipeline.storage.datasets import DatasetRecord, write_dataset
from triangulation_pipeline.storage.jobs import start_job
from triangulation_pipeline.storage.registry import register_model
from triangulation_pipeline_tests.storage.conftest import make_batch

OTHER = random_network(5, seed=1)


@pytest.fixture
def instance(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dg.DagsterInstance]:
    for name in ("NETWORK_FILE", "RETRAIN_CRON", "RETRAIN_TIMEZONE"):
        monkeypatch.delenv(f"TRIANGULATION_{name}", raising=False)
    with dg.DagsterInstance.get() as found:
        yield found


@pytest.fixture
def engine(instance: dg.DagsterInstance) -> Iterator[Engine]:
    storage = OpenStorage()
    yield storage.engine
    storage.close()


def add_dataset(engine: Engine, network: ReceiverNetwork = NORTH_WEST_ITALY) -> DatasetRecord:
    dataset_id = str(uuid.uuid4())
    record, _ = write_dataset(
        engine,
        dataset_id=dataset_id,
        name=f"dataset-{dataset_id[:8]}",
        config={},
        network_name=network.name,
        network_digest=network.digest,
        batches=[make_batch(0, 10, len(network.sites))],
        quality_metrics=dict,
    )
    return record


def train(engine: Engine, dataset: DatasetRecord) -> str:
    job_id = str(uuid.uuid4())
    start_job(
        engine,
        job_id=job_id,
        run_id=job_id,
        job_name="a job",
        description="",
        config={},
        synthetic_dataset_id=dataset.id,
        total_epochs=1,
    )
    return job_id


def write_network(path: Path, network: ReceiverNetwork) -> None:
    path.write_text(yaml.safe_dump(network.model_dump(mode="json", exclude_none=True)))


def tick(
    sensor: dg.SensorDefinition, instance: dg.DagsterInstance, cursor: str | None
) -> tuple[list[dg.RunRequest], str | None, str | None]:
    """The runs asked for, the cursor afterwards and why there are none."""
    with dg.build_sensor_context(instance=instance, cursor=cursor, resources={"storage": Storage()}) as context:
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
    requests, cursor, reason = tick(automation.new_dataset, instance, None)
    assert (requests, reason) == ([], "from now on: datasets without a training that exist are left alone (1)")
    assert tick(automation.new_dataset, instance, cursor)[2] == "there is no new dataset"

    first, second = add_dataset(engine), add_dataset(engine)
    (request,), cursor, _ = tick(automation.new_dataset, instance, cursor)
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
    (request,), cursor, _ = tick(automation.new_dataset, instance, cursor)
    assert request.run_key == f"dataset:{second.id}"
    # Its run may have failed before it had a job: it is not tried for ever.
    assert tick(automation.new_dataset, instance, cursor)[2] == "there is no new dataset"


def test_dataset_of_a_training_is_left_to_it(instance: dg.DagsterInstance, engine: Engine) -> None:
    _, cursor, _ = tick(automation.new_dataset, instance, None)
    run = create_run_for_test(instance, "train_locator", status=dg.DagsterRunStatus.STARTED)
    dataset = add_dataset(engine)
    requests, after, reason = tick(automation.new_dataset, instance, cursor)
    assert (requests, after) == ([], cursor)
    assert reason == f"run {run.run_id} trains a model (started): one at a time"
    train(engine, dataset)
    instance.report_run_canceled(run)
    assert tick(automation.new_dataset, instance, cursor)[2] == "there is no new dataset"


def test_dataset_of_another_network_waits_for_its_network(
    instance: dg.DagsterInstance, engine: Engine, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, cursor, _ = tick(automation.new_dataset, instance, None)
    dataset = add_dataset(engine, OTHER)
    requests, cursor, reason = tick(automation.new_dataset, instance, cursor)
    assert requests == []
    assert reason == (
        f"new datasets are of another network than north-west-italy ({NORTH_WEST_ITALY.digest[:8]}): "
        f"{dataset.name} of random-5-1"
    )
    monkeypatch.setenv("TRIANGULATION_NETWORK_FILE", "sites.yaml")
    assert tick(automation.new_dataset, instance, cursor)[2] == f"network file {home}/sites.yaml does not exist"
    write_network(home / "sites.yaml", OTHER)
    (request,), _, _ = tick(automation.new_dataset, instance, cursor)
    assert request.run_config["ops"] == {
        "receiver_network": {"config": {"network_file": f"{home}/sites.yaml"}},
        "synthetic_dataset": {"config": {"dataset_id": dataset.id}},
    }


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
    assert (automation.training_under_way(instance) is not None) == busy
    instance.report_run_canceled(run)
    assert automation.training_under_way(instance) is None


def test_changed_network_file(
    instance: dg.DagsterInstance, engine: Engine, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sensor, path = automation.network_file_changed, home / "sites.yaml"
    assert "TRIANGULATION_NETWORK_FILE is not set" in str(tick(sensor, instance, None)[2])
    monkeypatch.setenv("TRIANGULATION_NETWORK_FILE", str(path))
    assert tick(sensor, instance, None)[1:] == (None, f"network file {path} does not exist")

    write_network(path, NORTH_WEST_ITALY)
    requests, cursor, _ = tick(sensor, instance, None)
    assert (requests, cursor) == ([], NORTH_WEST_ITALY.digest)
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
    assert request.run_config == {"ops": {"receiver_network": {"config": {"network_file": str(path)}}}}
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
    monkeypatch.setenv("TRIANGULATION_NETWORK_FILE", "sites.yaml")
    dataset = add_dataset(engine)
    register_model(
        engine,
        model_name="rf-triangulation",
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
    )
    write_network(home / "sites.yaml", NORTH_WEST_ITALY)
    assert tick(automation.network_file_changed, instance, None)[:2] == ([], NORTH_WEST_ITALY.digest)
    write_network(home / "sites.yaml", OTHER)
    (request,), cursor, _ = tick(automation.network_file_changed, instance, None)
    assert request.run_key is not None
    assert request.run_key.startswith(f"network:{OTHER.digest}:")
    assert cursor == OTHER.digest


def test_each_retraining_has_a_seed_of_its_own(instance: dg.DagsterInstance) -> None:
    rome = ZoneInfo("Europe/Rome")
    # 2:30 comes twice on this night.
    times = [datetime(2026, 10, 25, 2, 30, tzinfo=rome, fold=fold) for fold in (0, 1)]
    requests = []
    for time in times:
        context = dg.build_schedule_context(instance, scheduled_execution_time=time)
        request = automation.periodic_retraining(context)
        assert isinstance(request, dg.RunRequest)
        check_run_config(request.run_config)
        requests.append(request)
    assert [request.run_config for request in requests] == [
        {"ops": {"synthetic_dataset": {"config": {"seed": seed}}}} for seed in (202610250030, 202610250130)
    ]
    assert [request.run_key for request in requests] == [
        f"scheduled:2026-10-25T{hour}:30:00+00:00" for hour in ("00", "01")
    ]

    run = create_run_for_test(instance, "train_locator", status=dg.DagsterRunStatus.STARTING)
    found = automation.periodic_retraining(dg.build_schedule_context(instance, scheduled_execution_time=times[0]))
    assert isinstance(found, dg.SkipReason)
    assert found.skip_message == f"run {run.run_id} trains a model (starting): one at a time"

    # But its own run, where the daemon was killed between making and queueing it.
    instance.report_run_canceled(run)
    tags = {"dagster/run_key": str(requests[0].run_key)}
    create_run_for_test(instance, "train_locator", status=dg.DagsterRunStatus.NOT_STARTED, tags=tags)
    found = automation.periodic_retraining(dg.build_schedule_context(instance, scheduled_execution_time=times[0]))
    assert found == requests[0]


def test_retraining_takes_cron_and_time_zone_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CRON", "TIMEZONE"):
        monkeypatch.setenv(f"TRIANGULATION_RETRAIN_{name}", "")  # as a compose file leaves it
    settings = automation.read_automation_settings()
    assert (settings.retrain_cron, settings.retrain_timezone) == ("0 3 * * 0", "UTC")
    monkeypatch.setenv("TRIANGULATION_RETRAIN_CRON", "30 4 1 * *")
    monkeypatch.setenv("TRIANGULATION_RETRAIN_TIMEZONE", "Europe/Rome")
    code = (
        "from triangulation_pipeline.defs.automation import periodic_retraining as found\n"
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
        ("TIMEZONE", "../../etc/passwd", "must be the name of a time zone, as in Europe/Rome, got '../../etc/passwd'"),
    ],
)
def test_wrong_settings_are_one_sentence(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, sentence: str
) -> None:
    monkeypatch.setenv(f"TRIANGULATION_RETRAIN_{variable}", value)
    with pytest.raises(ValueError, match="must be") as refusal:
        automation.read_automation_settings()
    assert str(refusal.value) == f"TRIANGULATION_RETRAIN_{variable} {sentence}"
