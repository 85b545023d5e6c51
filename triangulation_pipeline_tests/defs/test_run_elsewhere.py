"""The whole graph in the places of production: an object store in a bucket, a database server, and both killed."""

import json
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
from sqlalchemy import make_url, text

from triangulation_pipeline.jobs.record import load_checkpoint, read_metrics, read_state
from triangulation_pipeline.jobs.states import fail_job, get_job, list_jobs
from triangulation_pipeline.storage import engine as engine_module
from triangulation_pipeline.storage.registry import get_model_of_job
from triangulation_pipeline.storage.s3 import S3Store
from triangulation_pipeline.storage.tables import JobStatus
from triangulation_pipeline_tests.conftest import S3_SECRET, cannot_run, new_bucket_name, use_s3
from triangulation_pipeline_tests.defs.conftest import Run, execute, reexecute, settings
from triangulation_pipeline_tests.postgres import (
    NO_BINARIES,
    NO_TIMESCALEDB,
    ROLE,
    OwnServer,
    find_binaries,
    find_timescaledb,
    temporary_server,
)
from triangulation_pipeline_tests.rclone import NO_RCLONE, S3Server, find_rclone, s3_server
from triangulation_pipeline_tests.storage.conftest import keys_of
from triangulation_pipeline_tests.test_cli import small_run, triangulation

pytestmark = pytest.mark.production


def test_a_run_keeps_its_objects_in_the_bucket(home: Path, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use_s3(monkeypatch, s3_endpoint)
    place = f"s3://{new_bucket_name()}/some/prefix"
    monkeypatch.setenv("TRIANGULATION_OBJECT_STORE", place)
    run = execute(settings())
    assert run.result.success
    objects = run.storage.objects
    model, job = get_model_of_job(run.engine, run.run_id), get_job(run.engine, run.run_id)
    assert model.pytorch_model_location == f"{place}/checkpoints/{run.run_id}/best_model.pth"
    assert run.metadata("registered_model")["checkpoint"] == model.pytorch_model_location
    checkpoint = load_checkpoint(objects, model.pytorch_model_location, model.sha256)
    assert checkpoint.epoch == model.epoch
    with run.engine.connect() as connection:
        pictures = json.loads(
            connection.execute(text("SELECT visualization_paths FROM model_evaluations")).scalar_one()
        )
    named = [*pictures.values(), model.pytorch_model_location, job.state_location]
    assert {objects.key(str(location)) for location in named} <= set(keys_of(objects))
    assert len(keys_of(objects, f"checkpoints/{run.run_id}/")) == 5
    assert not (home / ".dagster" / "objects").exists()


def test_a_bucket_without_credentials_ends_the_run_in_its_first_step(
    home: Path, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_s3(monkeypatch, s3_endpoint)
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("TRIANGULATION_OBJECT_STORE", "s3://bucket/prefix")
    run = execute(settings())
    assert run.failed_step() == "receiver_network"
    assert run.failure() == (
        "object store s3://bucket/prefix cannot be opened: "
        "there are no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    )
    assert list_jobs(run.engine) == []


@dataclass(frozen=True)
class Servers:
    """The places of production, which a test may kill: every run in the environment's home uses them."""

    database: OwnServer
    s3: S3Server
    secrets: tuple[str, ...]

    def kill(self) -> None:
        """Both, at once and without a word."""
        self.s3.stop(signal.SIGKILL)
        self.database.stop(signal.SIGKILL)

    def start(self) -> None:
        self.database.start()
        self.s3.start()


@pytest.fixture
def servers(
    request: pytest.FixtureRequest, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Servers]:
    """A database server, with the extension unless asked without, and an S3 server with its objects on disk."""
    timescaledb = getattr(request, "param", "timescale") == "timescale"
    if (find_timescaledb() if timescaledb else find_binaries()) is None:
        cannot_run(NO_TIMESCALEDB if timescaledb else NO_BINARIES)
    if find_rclone() is None:
        cannot_run(NO_RCLONE)
    with temporary_server(timescaledb=timescaledb) as database, s3_server(tmp_path / "buckets") as s3:
        url = database.create_database(timescaledb=timescaledb)
        assert url.password
        monkeypatch.setenv("TRIANGULATION_DATABASE_URL", url.render_as_string(hide_password=False))
        use_s3(monkeypatch, s3.endpoint)
        monkeypatch.setenv("TRIANGULATION_OBJECT_STORE", f"s3://{new_bucket_name()}/some/prefix")
        yield Servers(database, s3, (url.password, S3_SECRET))


@contextmanager
def after_epoch(number: int, act: Callable[[], None]) -> Iterator[None]:
    """Does something in the middle of a training, once its log says that this epoch is done."""
    done = []

    class Watch(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if not done and record.getMessage().startswith(f"epoch {number}/"):
                done.append(record)
                act()

    logger, watch = logging.getLogger("triangulation_pipeline.jobs.worker"), Watch()
    logger.addHandler(watch)
    try:
        yield
    finally:
        logger.removeHandler(watch)
    assert done


def metrics_of(run: Run) -> pd.DataFrame:
    """What the run's epochs recorded, but for the time they took."""
    return read_metrics(run.engine, run.run_id).drop(columns="epoch_seconds")


def assert_nowhere(secrets: Iterable[str], home: Path, run: Run) -> None:
    """Not in the events, and in no file of the instance: databases of runs and events, compute logs."""
    events = "".join(map(str, run.instance.all_logs(run.run_id)))
    files = [path for path in home.rglob("*") if path.is_file()]
    assert any(path.suffix in {".err", ".out"} for path in files)
    for secret in secrets:
        assert secret not in events
        assert [path for path in files if secret.encode() in path.read_bytes()] == []


@pytest.mark.parametrize("servers", ["timescale", "postgresql"], indirect=True)
def test_a_run_in_production(servers: Servers, home: Path) -> None:
    run = execute(settings())
    assert run.result.success
    model = get_model_of_job(run.engine, run.run_id)
    assert load_checkpoint(run.storage.objects, model.pytorch_model_location, model.sha256)
    with run.engine.connect() as connection:
        rows = connection.execute(text("SELECT count(*), count(DISTINCT epoch) FROM training_metrics")).one()
        samples = connection.execute(text("SELECT count(*) FROM synthetic_training_samples")).scalar_one()
    assert (tuple(rows), samples) == ((4, 4), 3000)

    # Both servers are killed in the middle of a training, and there again after some seconds.
    def killed() -> None:
        servers.kill()
        timers.append(threading.Timer(2, servers.start))
        timers[0].start()

    timers: list[threading.Timer] = []
    with after_epoch(2, killed):
        ridden_out = execute(settings(), instance=run.instance)
    timers[0].join()
    assert ridden_out.result.success
    assert ridden_out.metadata("synthetic_dataset")["reused"] is True
    assert metrics_of(ridden_out).equals(metrics_of(run))
    # Equal weights are the same version, also on PostgreSQL.
    again = get_model_of_job(ridden_out.engine, ridden_out.run_id)
    assert (again.version, again.weights_digest) == (1, model.weights_digest)

    assert_nowhere(servers.secrets, home, run)
    for each in (run, ridden_out):
        each.storage.close()


@pytest.mark.parametrize("servers", ["postgresql"], indirect=True)
def test_the_last_page_of_a_run_names_the_places_without_their_secrets(servers: Servers, home: Path) -> None:
    done = triangulation("run", "--json", "--config", small_run(home, synthetic_dataset={"num_samples": 1000}))
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    assert results["database"].startswith(f"postgresql+psycopg://{ROLE}:***@")
    assert results["object_store"] == os.environ["TRIANGULATION_OBJECT_STORE"]
    assert results["checkpoint"].startswith(results["object_store"])
    assert not [secret for secret in servers.secrets if secret in done.stdout + done.stderr]


@pytest.mark.parametrize("which", ["database", "s3"])
def test_a_server_that_stays_away_ends_the_run_which_can_go_on(
    servers: Servers, home: Path, which: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = getattr(servers, which)
    with after_epoch(2, lambda: server.stop(signal.SIGKILL)), monkeypatch.context() as patch:
        patch.setattr(engine_module, "DEADLINE_S", 1)
        patch.setitem(S3Store.__init__.__kwdefaults__, "deadline_s", 1)  # type: ignore[arg-type]
        run = execute(settings())
    assert run.failed_step() == "trained_model"
    says = "connection refused; is the server running there?" if which == "database" else "refuses the connection"
    assert run.failure().endswith(f"{says}, for 1 seconds")
    server.start()
    assert_nowhere(servers.secrets, home, run)

    job = get_job(run.engine, run.run_id)
    assert (job.current_epoch, len(read_metrics(run.engine, job.id))) == (2, 2)
    assert read_state(run.storage.objects, job)
    if which == "database":  # It could not be told; a job whose run is dead is marked so later.
        assert job.status is JobStatus.running
        fail_job(run.engine, job, "the run is dead")
    else:
        assert (job.status, job.error_message) == (JobStatus.failed, run.failure())
    reexecute(run)
    assert get_job(run.engine, job.id).status is JobStatus.completed
    assert read_metrics(run.engine, job.id)["epoch"].tolist() == [1, 2, 3, 4]
    assert get_model_of_job(run.engine, job.id).version == 1
    run.storage.close()


@pytest.mark.parametrize("wrong", ["password", "secret"])
def test_wrong_credentials_are_one_sentence_and_nowhere_else(
    servers: Servers, home: Path, wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if wrong == "password":
        url = make_url(os.environ["TRIANGULATION_DATABASE_URL"]).set(password="not-the-password")
        monkeypatch.setenv("TRIANGULATION_DATABASE_URL", url.render_as_string(hide_password=False))
    else:
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret")
    run = execute(settings())
    assert run.failed_step() == "receiver_network"
    says = f"wrong user or password for user '{ROLE}'" if wrong == "password" else "the secret is wrong"
    assert says in run.failure()
    assert_nowhere((*servers.secrets, "not-the-password", "not-the-secret"), home, run)
