import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import time_machine
from sqlalchemy import Engine, event, insert, select

from triangulation_pipeline.jobs.record import read_history, read_metrics, read_state, record_epoch
from triangulation_pipeline.jobs.states import (
    complete_job,
    fail_job,
    get_job,
)
from triangulation_pipeline.storage.engine import writing
from triangulation_pipeline.storage.errors import IllegalTransition, StorageError
from triangulation_pipeline.storage.objects import FolderStore, StoredObject
from triangulation_pipeline.storage.tables import training_metrics
from triangulation_pipeline.training.metrics import METRIC_COLUMNS
from triangulation_pipeline_tests.jobs.helpers import (
    EARLIER,
    LATER,
    MakeJob,
    again,
    metrics,
    record,
)
from triangulation_pipeline_tests.storage.conftest import keys_of


def test_metrics_as_a_table(engine: Engine, make_job: MakeJob) -> None:
    job = make_job()
    assert list(read_metrics(engine, job.id).columns) == ["epoch", *METRIC_COLUMNS]
    record(engine, job, 1, val_rmse_good_geom_m=None)
    record(engine, job, 2)
    record(engine, make_job(), 1)
    table = read_metrics(engine, job.id)
    assert table["epoch"].tolist() == [1, 2]
    assert table["epoch"].dtype == np.int64
    assert (table[list(METRIC_COLUMNS)].dtypes == np.float64).all()
    assert math.isnan(table["val_rmse_good_geom_m"][0])
    assert read_history(engine, job.id)[0].val_rmse_good_geom_m is None
    assert table["epoch_seconds"][1] == metrics(2).epoch_seconds


def test_metrics_are_read_in_the_order_of_epochs_whatever_the_order_of_rows(engine: Engine, make_job: MakeJob) -> None:
    job = make_job()
    for epoch in (3, 1, 2):
        with writing(engine) as connection:
            values = {name: getattr(metrics(epoch), name) for name in METRIC_COLUMNS}
            connection.execute(
                insert(training_metrics).values(training_job_id=job.id, epoch=epoch, timestamp=EARLIER, **values)
            )
    table = read_metrics(engine, job.id)
    assert table.to_dict("records") == [asdict(metrics(epoch)) for epoch in (1, 2, 3)]
    assert read_history(engine, job.id) == [metrics(1), metrics(2), metrics(3)]


def test_an_epoch_is_recorded_at_its_time_and_of_its_job_alone(engine: Engine, make_job: MakeJob) -> None:
    first, second = make_job(), make_job()
    for job, moment in ((first, EARLIER), (second, LATER)):
        with time_machine.travel(moment, tick=False):
            record(engine, job, 1)
    assert get_job(engine, first.id).state_location == "/store/1"
    record(engine, second, 1, state=StoredObject("/store/other", "f" * 64))
    assert get_job(engine, first.id).state_location == "/store/1"
    rows = select(training_metrics.c.timestamp).where(training_metrics.c.training_job_id == first.id)
    with engine.connect() as connection:
        assert connection.execute(rows).all() == [(EARLIER,)]


def test_an_epoch_trained_again_leaves_one_row(engine: Engine, make_job: MakeJob) -> None:
    job = make_job()
    record(engine, job, 1)
    assert record(engine, job, 1, train_loss=9.0) is None  # the same state: it must not be deleted
    record(engine, job, 2)
    record(engine, job, 3)
    fail_job(engine, job, "out of memory")
    job = again(engine, job)
    assert record(engine, job, 2, train_loss=7.0) == "/store/3"
    table = read_metrics(engine, job.id)
    assert table["epoch"].tolist() == [1, 2]
    assert table["train_loss"].tolist() == [9.0, 7.0]


def test_the_state_of_an_epoch_is_stored_before_its_row_and_the_one_before_deleted_after_it(
    engine: Engine, make_job: MakeJob, tmp_path: Path
) -> None:
    job, objects = make_job(), FolderStore(tmp_path / "objects")
    best = {"best_epoch": 1, "best_val_loss": 0.5}
    assert read_state(objects, job) is None
    for epoch in (1, 2):
        record_epoch(engine, objects, job, metrics(epoch), f"state {epoch}".encode(), **best)
        (key,) = keys_of(objects)
        assert key.startswith(f"checkpoints/{job.id}/state/{epoch}-")
        assert read_state(objects, get_job(engine, job.id)) == f"state {epoch}".encode()

    now = get_job(engine, job.id)
    fail_job(engine, job, "broke")
    with pytest.raises(IllegalTransition, match=f"job {job.id} is failed"):
        record_epoch(engine, objects, job, metrics(3), b"state 3", **best)
    assert len(keys_of(objects)) == 2
    assert read_state(objects, get_job(engine, job.id)) == read_state(objects, now) == b"state 2"

    objects.delete(key)
    with pytest.raises(StorageError, match="is missing"):
        read_state(objects, now)


def test_writers_of_one_epoch_leave_one_row(engine: Engine, make_job: MakeJob) -> None:
    job = make_job()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: record(engine, job, 1), range(8)))
    assert read_metrics(engine, job.id)["epoch"].tolist() == [1]


def test_an_epoch_is_recorded_though_the_end_of_its_transaction_is_lost(
    engine: Engine, make_job: MakeJob, lose_next_commit: Callable[[], None]
) -> None:
    """It leaves the same when it is done twice, which a sign of life or a change of state does not."""
    job = make_job()
    lose_next_commit()
    record(engine, job, 1)
    assert (get_job(engine, job.id).current_epoch, len(read_metrics(engine, job.id))) == (1, 1)
    lose_next_commit()
    with pytest.raises(StorageError, match="whether it was written before is not known"):
        complete_job(engine, job)


def test_a_refused_row_leaves_the_job_as_it_was(engine: Engine, make_job: MakeJob) -> None:
    job = make_job()
    record(engine, job, 1)
    before = get_job(engine, job.id)

    def refuse(_connection, _cursor, statement: str, _parameters, _context, _many) -> None:
        if statement.startswith("INSERT INTO training_metrics"):
            raise RuntimeError("refused")

    event.listen(engine, "before_cursor_execute", refuse)
    with pytest.raises(RuntimeError, match="refused"):
        record(engine, job, 2)
    assert get_job(engine, job.id) == before
    assert read_metrics(engine, job.id)["epoch"].tolist() == [1]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"val_loss": math.nan}, r"metrics\.val_loss must be a finite number, got nan"),
        ({"val_loss": None}, r"metrics\.val_loss must be a finite number, got None"),
        ({"val_rmse_good_geom_m": math.inf}, r"metrics\.val_rmse_good_geom_m must be a finite number, got inf"),
        ({"epoch": 0}, r"metrics\.epoch must be a whole number from 1 to 4, got 0"),
        ({"epoch": 5}, r"metrics\.epoch must be a whole number from 1 to 4, got 5"),
        ({"epoch": math.nan}, r"metrics\.epoch must be a whole number"),
        ({"epoch": 1.5}, r"metrics\.epoch must be a whole number from 1 to 4, got 1\.5"),
        ({"epoch": None}, r"metrics\.epoch must be a whole number from 1 to 4, got None"),
    ],
)
def test_bad_metrics_are_refused(engine: Engine, make_job: MakeJob, changes: dict, says: str) -> None:
    job = make_job()
    with pytest.raises(ValueError, match=says):
        record(engine, job, 1, **changes)
    assert get_job(engine, job.id) == job
