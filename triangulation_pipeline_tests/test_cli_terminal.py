"""What somebody else wrote does nothing to the terminal: stored names and reasons, a webserver's words, log lines."""

import http.server
import io
import json
import logging
import os
import pty
import re
import subprocess
import sys
import threading
import uuid

import pytest
from rich.console import Console
from sqlalchemy import Engine, update

from triangulation_pipeline.cli.progress import progress_on
from triangulation_pipeline.cli.results import show_results
from triangulation_pipeline.jobs.continuation import start_job
from triangulation_pipeline.jobs.states import fail_job
from triangulation_pipeline.storage.datasets import write_dataset
from triangulation_pipeline.storage.engine import writing
from triangulation_pipeline.storage.evaluations import NewEvaluation, record_evaluation
from triangulation_pipeline.storage.registry import NewModel, register_model
from triangulation_pipeline.storage.tables import synthetic_datasets
from triangulation_pipeline.training.config import TrainingConfig
from triangulation_pipeline_tests.jobs.helpers import record, set_row
from triangulation_pipeline_tests.storage.conftest import a_spec, make_batch

# Sets the window's title, rings, clears the screen, overwrites the line, turns the text around, forges a line of a log,
# and says things in rich's markup, in its emoji codes and in 8-bit control codes.
HOSTILE = (
    "a\x1b]0;OWNED\x07\x1b[2J\x1b[31m\r\u202e\u2028\x9b2J\x7f\n2026-01-01 CRITICAL - forged [red]b[/y] [link=x] :bug:"
)
SHOWN = (
    r"a\x1b]0;OWNED\x07\x1b[2J\x1b[31m\r\u202e\u2028\x9b2J\x7f\n2026-01-01 CRITICAL - forged [red]b[/y] [link=x] :bug:"
)
# In the messages of the storage room, which quote the first line.
QUOTED = r"a\x1b]0;OWNED\x07\x1b[2J\x1b[31m \u202e \x9b2J\x7f"
# What rich writes on its own account: bold heads of columns.
RICH = re.compile("\x1b\\[(0|1)m")


@pytest.fixture
def engine(engine: Engine) -> Engine:
    """A database in which somebody has written everywhere."""
    dataset, _ = write_dataset(
        engine,
        a_spec(),
        name=HOSTILE,
        batches=[make_batch(0, 20)],
        quality_metrics=dict,
    )
    with writing(engine) as connection:
        connection.execute(update(synthetic_datasets).values(network_name=HOSTILE[:40], network_digest=HOSTILE[:60]))
    job_id = str(uuid.uuid4())
    config = TrainingConfig(epochs=2)
    job = start_job(engine, job_id=job_id, run_id=job_id, config=config, synthetic_dataset_id=dataset.id)
    set_row(engine, job, job_name=HOSTILE, description=HOSTILE)
    record(engine, job, 1)
    for digest in ("a" * 64, HOSTILE[:64]):
        origin = {"epoch": 1, "synthetic_dataset_id": dataset.id}
        register_model(
            engine,
            NewModel(
                model_name=HOSTILE,
                model_architecture=HOSTILE[:50],
                pytorch_model_location=HOSTILE,
                sha256=digest,
                weights_digest=digest,
                trained_by_job_id=job.id,
                network_name=HOSTILE[:40],
                network_digest=HOSTILE[:60],
                hyperparameters={},
                metrics={},
                passed=digest == "a" * 64,
                promotion_reason=HOSTILE,
                **origin,
            ),
        )
        record_evaluation(
            engine,
            NewEvaluation(
                training_job_id=job.id,
                checkpoint_sha256=digest,
                weights_digest=digest,
                metrics={"promoted": False, "promotion_reason": HOSTILE},
                visualization_paths={},
                **origin,
            ),
        )
    fail_job(engine, job, HOSTILE)
    return engine


def on_a_terminal(*arguments: str) -> str:
    """What a command writes to a terminal of its own, standard error included."""
    controller, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "triangulation_pipeline.cli", *arguments],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        env=os.environ | {"TERM": "xterm-256color", "COLUMNS": "1000"},
    )
    os.close(terminal)
    written = b""
    while True:
        try:
            written += os.read(controller, 65536)
        except OSError:  # its end
            break
    os.close(controller)
    process.wait(timeout=60)
    return written.decode()


def harmless(written: str) -> str:
    """The words, of which the terminal shows all and obeys none."""
    words = RICH.sub("", written).replace("\r\n", "\n")
    assert [character for character in words if not character.isprintable() and character != "\n"] == []
    assert not any(line.startswith("2026-01-01") for line in words.splitlines())
    return words


def test_stored_text_is_shown_and_not_obeyed(engine: Engine) -> None:
    for listing, shown in (("jobs", SHOWN), ("datasets", SHOWN), ("models", SHOWN), ("evaluations", SHOWN[:20])):
        assert shown in harmless(on_a_terminal(listing))
    (row, *_) = json.loads(harmless(on_a_terminal("models", "--json")))
    assert row["model_name"] == HOSTILE


def test_refusals_and_answers_are_shown_and_not_obeyed(engine: Engine) -> None:
    assert harmless(on_a_terminal("promote", HOSTILE, "1")) == f"{SHOWN}/1 is in production\n"
    assert harmless(on_a_terminal("promote", HOSTILE, "2")) == (
        f"Error: {QUOTED}/2 cannot go into production. {SHOWN}\n"
    )
    assert harmless(on_a_terminal("rollback", HOSTILE)) == (
        f"Error: no version before {QUOTED}/1 was ever in production\n"
    )


class Server(http.server.BaseHTTPRequestHandler):
    """A webserver that answers every request with a fault."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"errors": [{"message": HOSTILE}]}).encode())

    def log_message(self, *_: object) -> None:
        pass


def test_a_webservers_words_are_shown_and_not_obeyed(engine: Engine) -> None:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    job_id = json.loads(on_a_terminal("jobs", "--json"))[0]["job_id"]
    for command in ("status", "watch"):
        words = harmless(on_a_terminal(command, job_id, "--url", f"http://127.0.0.1:{server.server_port}"))
        assert words.startswith("Error: the webserver refused ")
        assert r"a\x1b]0;OWNED\x07\x1b[2J\x1b[31m" in words
    server.shutdown()
    server.server_close()


def test_log_lines_of_a_run_are_shown_and_not_obeyed() -> None:
    console = Console(file=io.StringIO(), width=300)
    with progress_on(console):
        logging.getLogger("triangulation_pipeline.anything").info("dataset %s", HOSTILE)
    assert isinstance(console.file, io.StringIO)
    assert f"dataset {SHOWN}\n" in harmless(console.file.getvalue())


def test_the_last_page_of_a_run_is_shown_and_not_obeyed() -> None:
    class Numbers(dict[str, float]):
        def __missing__(self, name: str) -> float:
            return 1.0

    console = Console(file=io.StringIO(), width=300)
    names = ("model_name", "version", "network", "promotion_reason", "checkpoint", "database", "object_store", "job_id")
    rows = {"test_rows": 9, "test_rows_good_geom": 7, "max_gdop": 5.0, "by_arrival_times": []}
    show_results(console, dict.fromkeys(names, HOSTILE) | {"metrics": Numbers()} | rows)
    assert isinstance(console.file, io.StringIO)
    words = harmless(console.file.getvalue())
    assert words.count(SHOWN) == len(names)
