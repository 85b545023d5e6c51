"""The views say what the tables hold, in the columns that are documented."""

import json
import uuid
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import time_machine
from sqlalchemy import Engine, Table, inspect, update

from triangulation_pipeline.evaluation.report import HEADLINE_NAMES
from triangulation_pipeline.jobs.continuation import announce_job
from triangulation_pipeline.jobs.record import read_metrics
from triangulation_pipeline.jobs.states import JobRecord, complete_job, fail_job, get_job, list_jobs, request_stop
from triangulation_pipeline.storage import views
from triangulation_pipeline.storage.datasets import DatasetRecord, list_datasets
from triangulation_pipeline.storage.engine import writing
from triangulation_pipeline.storage.evaluations import (
    EvaluationRecord,
    NewEvaluation,
    get_evaluation,
    record_evaluation,
)
from triangulation_pipeline.storage.registry import ModelRecord, NewModel, register_model, rollback_model
from triangulation_pipeline.storage.tables import JobStatus, Stop, training_metrics
from triangulation_pipeline.storage.views import (
    VIEWS,
    dataset_overview,
    epoch_overview,
    evaluation_overview,
    job_overview,
    model_overview,
    read_view,
)
from triangulation_pipeline.training.config import TrainingConfig
from triangulation_pipeline_tests.jobs.helpers import record, set_row
from triangulation_pipeline_tests.storage.model_rows import list_models

EARLIER = datetime(2026, 11, 1, 12, 30, 15, 250_000, tzinfo=UTC)
MEASURED = (
    "test_rmse_m",
    "test_rmse_good_geom_m",
    "test_p50_good_geom_m",
    "test_p95_good_geom_m",
    "test_coverage_95_good_geom",
    "huber_gauss_newton_p95_good_geom_m",
    "crlb_rms_good_geom_m",
)


def shown(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat(timespec="milliseconds")


def renamed(record: Any, *, moments: tuple[str, ...] = ("created_at",), **names: str) -> dict[str, Any]:
    """What is said of a record under the names of a view: ``new="old"``."""
    values = asdict(record)
    values |= {name: shown(values[name]) for name in moments}
    return values | {new: values[old] for new, old in names.items()}


def of_dataset(dataset: DatasetRecord, jobs: list[JobRecord]) -> dict[str, Any]:
    num_jobs = sum(job.synthetic_dataset_id == dataset.id for job in jobs)
    return renamed(dataset, dataset_id="id") | {"num_jobs": num_jobs}


def of_job(job: JobRecord) -> dict[str, Any]:
    moments = ("created_at", "started_at", "finished_at")
    return renamed(job, moments=moments, job_id="id", dataset_id="synthetic_dataset_id")


def of_model(model: ModelRecord) -> dict[str, Any]:
    measured = {name: model.metrics.get(name) for name in MEASURED}
    names = {"model_id": "id", "job_id": "trained_by_job_id", "dataset_id": "synthetic_dataset_id"}
    said = renamed(model, moments=("created_at", "production_since"), location="pytorch_model_location", **names)
    return said | measured | {"network": model.network}


def of_evaluation(evaluation: EvaluationRecord, datasets: list[DatasetRecord]) -> dict[str, Any]:
    (dataset,) = (dataset for dataset in datasets if dataset.id == evaluation.synthetic_dataset_id)
    found = evaluation.metrics
    names = {"job_id": "training_job_id", "dataset_id": "synthetic_dataset_id", "sha256": "checkpoint_sha256"}
    return (
        renamed(evaluation, moments=("evaluated_at",), evaluation_id="id", **names)
        | {name: found["headline"].get(name) for name in MEASURED}
        | {"passed": found["promoted"], "verdict": found["promotion_reason"]}
        | {"network_name": dataset.network_name, "network_digest": dataset.network_digest}
        | {"network": f"{dataset.network_name} ({dataset.network_digest[:8]})"}
    )


def of_epochs(engine: Engine, job: JobRecord) -> list[dict[str, Any]]:
    metrics = read_metrics(engine, job.id).astype(object)
    rows = metrics.where(metrics.notna(), None).to_dict("records")
    return [{"job_id": job.id, "timestamp": shown(EARLIER + timedelta(days=4)), **row} for row in rows]


def columns_of(view: Table, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{column.name: row[column.name] for column in view.columns} for row in rows]


class Filled:
    """A database in which each column of each view has a value of its own somewhere, and null where it may be."""

    def __init__(self, engine: Engine, make_job: Callable[[], JobRecord]) -> None:
        self.engine, self.evaluations = engine, []
        jobs = [self.at(day, make_job) for day in range(3)]
        self.at(3, announce_job, job_id=str(uuid.uuid4()), status=JobStatus.queued)
        for job, epochs in zip(jobs, (2, 3, 0), strict=True):
            for epoch in range(1, epochs + 1):
                self.at(4, record, job, epoch, val_rmse_good_geom_m=None if epoch == 1 else 2.25, best_epoch=epoch)
        self.at(5, complete_job, jobs[0])
        self.at(5, fail_job, jobs[1], "out of memory")
        request_stop(engine, jobs[2].id, Stop.pause)
        set_row(engine, jobs[2], parent_job_id=jobs[0].id)
        for number, job in enumerate((jobs[0], jobs[1], jobs[0])):
            self._finish(number, get_job(engine, job.id))
        self.at(9, rollback_model, "locator")

    def at(self, day: int, act: Callable[..., Any], *args: Any, **values: Any) -> Any:
        """Does it on that day, in the database where it wants one."""
        if act is announce_job:
            values |= {"config": TrainingConfig(job_name="announced", epochs=7)}
        with time_machine.travel(EARLIER + timedelta(days=day), tick=False):
            return act(self.engine, *args, **values) if args or values else act()

    def _finish(self, number: int, job: JobRecord) -> None:
        measured = {name: 10.0 * (number + 1) + i for i, name in enumerate(MEASURED)}
        measured = {"test_rmse_m": 3, "test_rmse_good_geom_m": None} if number == 1 else measured
        origin: dict[str, Any] = {
            "synthetic_dataset_id": str(job.synthetic_dataset_id),
            "epoch": number + 1,
            "weights_digest": f"{number}" * 64,
        }
        passed, reason = number != 1, ("Promoted: good.", "Not promoted: wide.", "Promoted: better.")[number]
        model = None
        for file in ("a", "b")[: 1 + (number == 0)]:  # of one file nobody makes a model
            evaluation_id = self.at(
                6 + number,
                record_evaluation,
                NewEvaluation(
                    training_job_id=job.id,
                    checkpoint_sha256=f"{number}{file}" * 32,
                    metrics={"headline": measured, "promoted": passed, "promotion_reason": reason},
                    visualization_paths={},
                    **origin | ({} if file == "a" else {"weights_digest": "f" * 64}),
                ),
            )
            self.evaluations.append(evaluation_id)
        models = list_models(self.engine)
        model = self.at(
            6 + number,
            register_model,
            NewModel(
                model_name="locator",
                model_architecture=("triangulation", "regression", "triangulation")[number],
                pytorch_model_location=f"/store/{number}.pth",
                sha256=f"{number}a" * 32,
                trained_by_job_id=job.id,
                network_name="test",
                network_digest="d" * 64,
                hyperparameters={},
                metrics=measured,
                passed=passed,
                promotion_reason=reason,
                parent_model_id=models[0].id if models else None,
                **origin,
            ),
            champion_id=next((model.id for model in models if model.is_production), None),
        ).model
        assert model.version == number + 1


@pytest.fixture
def filled(engine: Engine, make_job: Callable[[], JobRecord]) -> Filled:
    return Filled(engine, make_job)


def test_the_numbers_of_an_evaluation_are_those_of_its_headline() -> None:
    assert set(MEASURED) == set(views.MEASURED) <= set(HEADLINE_NAMES)


def test_the_views_have_the_documented_columns(engine: Engine) -> None:
    for view in VIEWS:
        columns = [column["name"] for column in inspect(engine).get_columns(view.name)]
        assert columns == [column.name for column in view.columns]
        assert all(column.comment and column.comment.endswith(".") for column in view.columns)
        assert read_view(engine, view) == []


def test_each_column_of_each_view_is_what_the_records_say(engine: Engine, filled: Filled) -> None:
    """And in the order that is promised: the newest first, epochs and versions in theirs."""
    datasets, jobs, models = list_datasets(engine), list_jobs(engine), list_models(engine)
    evaluations = [get_evaluation(engine, found) for found in filled.evaluations]
    assert [model.version for model in models] == [3, 2, 1]
    # Whole days apart, but for the two evaluations of one day, which follow each other by their id.
    evaluations.sort(key=lambda evaluation: evaluation.id)
    evaluations.sort(key=lambda evaluation: evaluation.evaluated_at, reverse=True)
    wanted: dict[Table, list[dict[str, Any]]] = {
        dataset_overview: [of_dataset(dataset, jobs) for dataset in datasets],
        job_overview: [of_job(job) for job in jobs],
        model_overview: [of_model(model) for model in models],
        evaluation_overview: [of_evaluation(evaluation, datasets) for evaluation in evaluations],
        epoch_overview: [row for job in sorted(jobs, key=lambda job: job.id) for row in of_epochs(engine, job)],
    }
    for view, rows in wanted.items():
        found = read_view(engine, view)
        assert found == columns_of(view, rows)
        assert found == json.loads(json.dumps(found, allow_nan=False))
        # Each column has been seen with a value.
        assert [name for name in found[0] if all(row[name] is None for row in found)] == []


def test_a_view_is_read_by_the_values_of_its_columns(engine: Engine, filled: Filled) -> None:
    done, failed = (list_jobs(engine, status)[0] for status in (JobStatus.completed, JobStatus.failed))
    (row,) = read_view(engine, job_overview, status="completed")
    assert row["job_id"] == done.id
    assert read_view(engine, job_overview, status="failed", job_id=done.id) == []
    assert read_view(engine, job_overview, status="failed", job_id=failed.id.upper())[0]["job_id"] == failed.id
    assert [row["epoch"] for row in read_view(engine, epoch_overview, job_id=done.id)] == [1, 2]
    assert read_view(engine, epoch_overview, job_id=str(uuid.uuid4())) == []
    assert read_view(engine, model_overview, model_name="other") == []
    with pytest.raises(ValueError, match="job_id must be a UUID of 36 characters, got something else"):
        read_view(engine, epoch_overview, job_id="x")
    # Epochs are in their order, whatever that of the rows.
    with writing(engine) as connection:
        its_own = training_metrics.c.training_job_id == failed.id
        connection.execute(update(training_metrics).where(its_own).values(epoch=7 - training_metrics.c.epoch))
    assert [row["epoch"] for row in read_view(engine, epoch_overview, job_id=failed.id)] == [4, 5, 6]
