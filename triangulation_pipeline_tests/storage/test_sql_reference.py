"""The page on the views is the views, and its examples run on both databases."""

import uuid
from collections.abc import Callable
from datetime import datetime

from sqlalchemy import Engine, text

from triangulation_pipeline.jobs.states import JobRecord, complete_job
from triangulation_pipeline.network import NORTH_WEST_ITALY
from triangulation_pipeline.storage.calibrations import store_calibration
from triangulation_pipeline.storage.engine import reading
from triangulation_pipeline.storage.sql_reference import EXAMPLES, sql_reference
from triangulation_pipeline_tests.conftest import ROOT
from triangulation_pipeline_tests.jobs.helpers import announce, record
from triangulation_pipeline_tests.storage.test_registry import register
from triangulation_pipeline_tests.test_calibration_file import KNOWN


def test_the_page_is_up_to_date() -> None:
    assert (ROOT / "docs" / "sql.md").read_text() == sql_reference()


def test_the_examples_answer_their_titles(engine: Engine, make_job: Callable[[], JobRecord]) -> None:
    done, running, announced = make_job(), make_job(), str(uuid.uuid4())
    for epoch, rmse_m in ((1, 9.0), (2, 8.0), (3, 8.5)):
        record(engine, done, epoch, val_rmse_m=rmse_m)
    record(engine, running, 1, val_rmse_m=7.0)
    complete_job(engine, done)
    announce(engine, announced)
    good = register(engine, done, passed=True, metrics={"test_rmse_m": 30.5, "crlb_rms_good_geom_m": 20.5})
    bad = register(engine, done, sha256="b" * 64, metrics={"test_rmse_m": 31.5}, promotion_reason="Not promoted: wide.")
    store_calibration(engine, KNOWN, NORTH_WEST_ITALY)
    known = zip(KNOWN.toa_bias_ns, KNOWN.toa_bias_sigma_ns, strict=True)
    biases = {site.name: pair for site, pair in zip(NORTH_WEST_ITALY.sites, known, strict=True)}
    biases[NORTH_WEST_ITALY.sites[-1].name] = (None, None)
    with reading(engine) as connection:
        found = {
            title: [tuple(map(plain, row)) for row in connection.execute(text(sql))] for title, sql in EXAMPLES.items()
        }
    assert found == {
        "The model in production, and what it measured": [
            ("locator", 1, "test (dddddddd)", 30.5, None, 20.5, plain(good.production_since), "/store/best_model.pth")
        ],
        "The jobs that wait or run": [
            (running.id, "test", "running", 1, 4, 7.0, None),
            (announced, "test", "queued", 0, 2, None, None),
        ],
        "The learning curve of the job that started last": [(1, 1.0, 1.0625, 7.0, 1.25)],
        "The best epoch of each job, by validation RMSE": [
            ("test", "running", running.id, 1, 7.0),
            ("test", "completed", done.id, 2, 8.0),
        ],
        "What each dataset led to": found["What each dataset led to"],
        "Why versions did not go into production": [("locator", bad.version, "Not promoted: wide.")],
        "How the clock of each site changed from calibration to calibration": [
            (f"north-west-italy ({NORTH_WEST_ITALY.digest[:8]})", name, KNOWN.to_ns, *biases[name])
            for name in sorted(biases)
        ],
    }
    names = [f"dataset {job.synthetic_dataset_id}" for job in (done, running)]
    assert sorted(found["What each dataset led to"], key=lambda row: -row[3]) == [
        (names[0], 20, 1, 2, 30.5),
        (names[1], 20, 1, 0, None),
    ]


def plain(value: object) -> object:
    """A moment and an id alike on both databases."""
    if isinstance(value, datetime):
        return value
    if isinstance(value, str) and value.endswith("Z"):
        return datetime.fromisoformat(value)
    return str(value) if isinstance(value, uuid.UUID) else value
