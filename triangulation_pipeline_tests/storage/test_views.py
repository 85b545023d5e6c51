"""The views say what the tables hold, in the columns that are documented."""

import json
import uuid
from collections.abc import Callable

import pytest
from sqlalchemy import Engine, inspect

from triangulation_pipeline.storage.jobs import JobRecord, complete_job
from triangulation_pipeline.storage.registry import record_evaluation, register_model
from triangulation_pipeline.storage.views import (
    VIEWS,
    dataset_overview,
    epoch_overview,
    evaluation_overview,
    job_overview,
    model_overview,
    read_view,
)
from triangulation_pipeline_tests.storage.test_jobs import record

HEADLINE = {"test_rmse_m": 64.5, "test_p95_good_geom_m": 104.25, "test_rmse_good_geom_m": None}


def test_the_views_have_the_documented_columns(engine: Engine) -> None:
    for view in VIEWS:
        columns = [column["name"] for column in inspect(engine).get_columns(view.name)]
        assert columns == [column.name for column in view.columns]
        assert all(column.comment for column in view.columns)
        assert read_view(engine, view) == []


def test_the_views_say_what_the_tables_hold(engine: Engine, make_job: Callable[[], JobRecord]) -> None:
    job = make_job()
    record(engine, job, 1, val_rmse_good_geom_m=None)
    record(engine, job, 2)
    job = complete_job(engine, job)
    origin = {"synthetic_dataset_id": str(job.synthetic_dataset_id), "epoch": 2}
    verdict = {"promoted": True, "promotion_reason": "Promoted: good."}
    evaluation_id = record_evaluation(
        engine,
        training_job_id=job.id,
        checkpoint_sha256="a" * 64,
        weights_digest="a" * 64,
        metrics={"headline": HEADLINE, **verdict},
        visualization_paths={},
        **origin,
    )
    model = register_model(
        engine,
        model_name="locator",
        model_architecture="triangulation",
        pytorch_model_location="/store/best.pth",
        sha256="a" * 64,
        weights_digest="a" * 64,
        trained_by_job_id=job.id,
        network_name="test",
        network_digest="d" * 64,
        hyperparameters={},
        metrics=HEADLINE,
        passed=True,
        promotion_reason="Promoted: good.",
        **origin,
    ).model

    (dataset,) = read_view(engine, dataset_overview)
    assert (dataset["dataset_id"], dataset["num_samples"], dataset["num_jobs"]) == (job.synthetic_dataset_id, 20, 1)
    (shown,) = read_view(engine, job_overview, status="completed")
    assert (shown["job_id"], shown["run_id"], shown["progress_percent"]) == (job.id, job.run_id, 100.0)
    assert shown["finished_at"] == job.finished_at.isoformat(timespec="milliseconds")
    assert read_view(engine, job_overview, status="failed") == []
    epochs = read_view(engine, epoch_overview, job_id=job.id)
    assert [(row["epoch"], row["val_rmse_good_geom_m"]) for row in epochs] == [(1, None), (2, 2.25)]
    (version,) = read_view(engine, model_overview, model_name="locator")
    assert (version["model_id"], version["version"], version["is_production"]) == (model.id, 1, True)
    assert (version["passed"], version["promoted"], version["network"]) == (True, True, "test (dddddddd)")
    assert (version["network"], version["weights_digest"]) == (model.network, "a" * 64)
    assert (version["test_rmse_m"], version["test_rmse_good_geom_m"], version["test_p95_good_geom_m"]) == (
        64.5,
        None,
        104.25,
    )
    (evaluation,) = read_view(engine, evaluation_overview, job_id=job.id)
    assert (evaluation["evaluation_id"], evaluation["model_id"]) == (evaluation_id, model.id)
    assert (evaluation["passed"], evaluation["verdict"]) == (True, "Promoted: good.")
    assert evaluation["test_p95_good_geom_m"] == 104.25
    assert (evaluation["network"], evaluation["network_digest"]) == ("test (dddddddd)", "d" * 64)
    json.dumps([dataset, shown, *epochs, version, evaluation], allow_nan=False)

    assert read_view(engine, epoch_overview, job_id=str(uuid.uuid4())) == []
    with pytest.raises(ValueError, match="job_id must be a UUID of 36 characters, got something else"):
        read_view(engine, epoch_overview, job_id="x")
