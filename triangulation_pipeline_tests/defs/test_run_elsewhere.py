"""The whole graph with its objects in a bucket, and the first step with a bucket that cannot be had."""

import json
from pathlib import Path

import pytest
from sqlalchemy import text

from triangulation_pipeline.storage.jobs import get_job, list_jobs
from triangulation_pipeline.storage.registry import get_model_of_job
from triangulation_pipeline.training.checkpoint import read_checkpoint
from triangulation_pipeline_tests.conftest import new_bucket_name, use_s3
from triangulation_pipeline_tests.defs.conftest import execute, settings
from triangulation_pipeline_tests.postgres import NO_BINARIES, find_binaries, temporary_server

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
    checkpoint = read_checkpoint(objects.get(objects.key(model.pytorch_model_location), model.sha256))
    assert checkpoint.epoch == model.epoch
    with run.engine.connect() as connection:
        pictures = json.loads(
            connection.execute(text("SELECT visualization_paths FROM model_evaluations")).scalar_one()
        )
    named = [*pictures.values(), model.pytorch_model_location, job.state_location]
    assert {objects.key(str(location)) for location in named} <= set(objects.list_keys())
    assert len(objects.list_keys(f"checkpoints/{run.run_id}/")) == 5
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


@pytest.mark.skipif(find_binaries() is None, reason=NO_BINARIES)
def test_a_run_on_postgresql_and_a_bucket(home: Path, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The places of production: a database server and an object store, the same graph, and no password in its log."""
    use_s3(monkeypatch, s3_endpoint)
    monkeypatch.setenv("TRIANGULATION_OBJECT_STORE", f"s3://{new_bucket_name()}")
    with temporary_server() as server:
        url = server.create_database()
        assert url.password
        monkeypatch.setenv("TRIANGULATION_DATABASE_URL", url.render_as_string(hide_password=False))
        run = execute(settings())
        assert run.result.success
        model = get_model_of_job(run.engine, run.run_id)
        assert run.storage.objects.get(run.storage.objects.key(model.pytorch_model_location), model.sha256)
        with run.engine.connect() as connection:
            rows = connection.execute(text("SELECT count(*), count(DISTINCT epoch) FROM training_metrics")).one()
            samples = connection.execute(text("SELECT count(*) FROM synthetic_training_samples")).scalar_one()
        assert (tuple(rows), samples) == ((4, 4), 3000)
        again = execute(settings(), instance=run.instance)
        assert again.metadata("synthetic_dataset")["reused"] is True
        assert get_model_of_job(again.engine, again.run_id).version == 2
        run.storage.close()
        again.storage.close()
    for entry in run.instance.all_logs(run.run_id):
        assert url.password not in str(entry)
