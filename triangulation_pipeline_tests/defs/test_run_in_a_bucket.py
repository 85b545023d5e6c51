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
