"""The page on the views is the views, and its examples run on both databases."""

from collections.abc import Callable

from sqlalchemy import Engine, text

from triangulation_pipeline.storage.engine import reading
from triangulation_pipeline.storage.jobs import JobRecord
from triangulation_pipeline.storage.sql_reference import EXAMPLES, sql_reference
from triangulation_pipeline_tests.conftest import ROOT
from triangulation_pipeline_tests.storage.test_jobs import record


def test_the_page_is_up_to_date() -> None:
    assert (ROOT / "docs" / "sql.md").read_text() == sql_reference()


def test_the_examples_run(engine: Engine, make_job: Callable[[], JobRecord]) -> None:
    job = make_job()
    record(engine, job, 1, val_rmse_m=9.0)
    record(engine, job, 2, val_rmse_m=8.0)
    with reading(engine) as connection:
        found = {title: connection.execute(text(sql)).mappings().all() for title, sql in EXAMPLES.items()}
    (waiting,) = found["What is waiting or at work"]
    assert (str(waiting["job_id"]), waiting["current_epoch"]) == (job.id, 2)
    assert [row["epoch"] for row in found["The learning curve of the job that began last"]] == [1, 2]
    (best,) = found["The best epoch of each job, by validation RMSE"]
    assert (best["epoch"], best["val_rmse_m"]) == (2, 8.0)
    (dataset,) = found["What each dataset led to"]
    assert (dataset["num_jobs"], dataset["num_models"], dataset["best_test_rmse_m"]) == (1, 0, None)
    assert found["The model in production, and what it measured"] == []
