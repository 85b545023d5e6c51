import logging
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import Engine

from triangulation_pipeline.jobs import liveness as module
from triangulation_pipeline.jobs.liveness import SILENT_LOOKS, Heartbeat, listen, look, send_heartbeat, why_dead
from triangulation_pipeline.jobs.states import JobRecord, complete_job, fail_job, get_job, request_stop
from triangulation_pipeline.storage.errors import IllegalTransition
from triangulation_pipeline.storage.tables import JobStatus, Stop
from triangulation_pipeline_tests.jobs.helpers import StandInRun, again, set_row

MakeJob = Callable[[], JobRecord]


@pytest.fixture
def database() -> str:
    """One will do: what a beat does to a row is tested on all of them."""
    return "sqlite"


@pytest.fixture(autouse=True)
def _in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(module, "HEARTBEAT_S", 0.01)
    yield
    assert seen(is_over)


def is_over() -> bool:
    """Whether no heartbeat is sent any more, not even a last time."""
    return "heartbeat" not in {thread.name for thread in threading.enumerate()}


def seen(what: Callable[[], object]) -> bool:
    """Whether it comes true within ten seconds."""
    end = time.monotonic() + 10
    while not what() and time.monotonic() < end:
        time.sleep(0.005)
    return bool(what())


def test_a_worker_gives_signs_of_life_while_it_is_at_work_and_not_after(engine: Engine, make_job: MakeJob) -> None:
    job = make_job()
    with Heartbeat(engine, job) as heartbeat:
        assert seen(lambda: get_job(engine, job.id).heartbeats >= 3)
        assert not heartbeat.should_stop
        assert heartbeat.asked is heartbeat.lost is None
    assert seen(is_over)
    beats = get_job(engine, job.id).heartbeats
    time.sleep(0.05)
    assert get_job(engine, job.id).heartbeats == beats


@pytest.mark.parametrize("stop", Stop)
def test_a_worker_learns_what_it_is_asked_for(engine: Engine, make_job: MakeJob, stop: Stop) -> None:
    job = make_job()
    with Heartbeat(engine, job) as heartbeat:
        request_stop(engine, job.id, stop)
        assert seen(lambda: heartbeat.should_stop)
        assert heartbeat.asked is stop
        assert heartbeat.lost is None


def test_a_worker_that_was_taken_for_dead_learns_it_from_its_heartbeat(engine: Engine, make_job: MakeJob) -> None:
    job = make_job()
    with Heartbeat(engine, job) as heartbeat:
        now = fail_job(engine, job, "no heartbeat")
        assert seen(lambda: heartbeat.should_stop)
    assert (heartbeat.asked, heartbeat.lost) == (
        None,
        f"job {job.id} is failed in run {job.run_id}, and no longer running in run {job.run_id}",
    )
    assert get_job(engine, job.id) == now


def test_a_worker_that_another_took_over_from_learns_it_from_its_heartbeat(engine: Engine, make_job: MakeJob) -> None:
    job = make_job()
    fail_job(engine, job, "no heartbeat")
    now = again(engine, job)
    with Heartbeat(engine, job) as heartbeat:
        assert seen(lambda: heartbeat.should_stop)
    assert (heartbeat.asked, heartbeat.lost) == (
        None,
        f"job {job.id} is running in run {now.run_id}, and no longer running in run {job.run_id}",
    )
    assert get_job(engine, job.id) == now


def test_a_worker_that_lost_its_job_gives_no_more_signs(
    engine: Engine, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, tries = make_job(), []

    def send_heartbeat(engine: Engine, job: JobRecord) -> None:
        tries.append(job)
        raise IllegalTransition("it is another's")

    monkeypatch.setattr(module, "send_heartbeat", send_heartbeat)
    with Heartbeat(engine, job) as heartbeat:
        assert seen(lambda: heartbeat.should_stop)
        time.sleep(0.05)
    assert (heartbeat.lost, tries) == ("it is another's", [job])


def test_a_database_that_is_away_is_told_once_and_beaten_to_again(
    engine: Engine, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    job, tries = make_job(), []

    def send_heartbeat(engine: Engine, job: JobRecord) -> Stop | None:
        tries.append(job)
        if len(tries) in {2, 3, 5}:
            raise RuntimeError("the server\nis away")
        return None if len(tries) < 7 else Stop.pause

    monkeypatch.setattr(module, "send_heartbeat", send_heartbeat)
    with caplog.at_level(logging.WARNING), Heartbeat(engine, job) as heartbeat:
        assert seen(lambda: heartbeat.asked is Stop.pause)
    assert heartbeat.lost is None
    # Once each time it goes away.
    assert [record.getMessage() for record in caplog.records] == [
        f"job {job.id}: its heartbeat cannot be sent: the server"
    ] * 2


def test_a_run_that_ends_does_not_wait_for_a_database_that_is_away(
    engine: Engine, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, answers = threading.Event(), threading.Event()

    def send_heartbeat(engine: Engine, job: JobRecord) -> None:
        asked.set()
        answers.wait(20)

    monkeypatch.setattr(module, "send_heartbeat", send_heartbeat)
    began = time.monotonic()
    with Heartbeat(engine, make_job()):
        assert asked.wait(10)
    assert time.monotonic() - began < 10
    answers.set()


ENDED, AT_WORK = "run {} ended without updating the job: its worker died", None
NOT_TRAINED = "run {} ended before it trained"
SILENT, UNKNOWN = "its worker sent no heartbeat for 120 s", "Dagster does not know run {} any more"


@pytest.mark.parametrize(
    ("status", "is_begun", "run_is_finished", "told", "told_after_silence"),
    [
        (JobStatus.running, True, False, AT_WORK, SILENT),
        (JobStatus.running, True, True, ENDED, ENDED),
        (JobStatus.running, True, None, AT_WORK, SILENT),
        (JobStatus.queued, True, False, AT_WORK, AT_WORK),
        (JobStatus.queued, True, True, AT_WORK, ENDED),
        (JobStatus.queued, True, None, AT_WORK, UNKNOWN),
        (JobStatus.queued, False, False, AT_WORK, AT_WORK),
        (JobStatus.queued, False, True, NOT_TRAINED, NOT_TRAINED),
        (JobStatus.pending, False, None, AT_WORK, UNKNOWN),
    ],
)
def test_whether_a_worker_is_dead_has_one_answer(
    engine: Engine,
    make_job: MakeJob,
    status: JobStatus,
    is_begun: bool,
    run_is_finished: bool | None,
    told: str | None,
    told_after_silence: str | None,
) -> None:
    """By what Dagster knows of the run (None: nothing), and by what the heartbeats say."""
    job = set_row(engine, make_job(), status=status)
    job = job if is_begun else set_row(engine, job, started_at=None)
    run = None if run_is_finished is None else StandInRun(str(job.run_id), run_is_finished)
    assert why_dead(job, run) == (None if told is None else told.format(job.run_id))
    assert why_dead(job, run, 120) == (None if told_after_silence is None else told_after_silence.format(job.run_id))


def test_a_worker_is_silent_after_so_many_looks_without_a_new_heartbeat(engine: Engine, make_job: MakeJob) -> None:
    beating, silent, done = make_job(), make_job(), make_job()
    memory: dict[str, tuple[int, int]] = {}
    for number in range(SILENT_LOOKS + 2):
        if number == 1:
            complete_job(engine, done)
        send_heartbeat(engine, beating)
        memory, found = look(engine, memory)
        assert (
            {job.id for job, _ in found}
            == memory.keys()
            == {beating.id, silent.id} | ({done.id} if not number else set())
        )
        seconds = {job.id: silent_s for job, silent_s in found}
        assert seconds[beating.id] is None
        assert seconds[silent.id] == (120 if number >= SILENT_LOOKS else None)
        assert memory[beating.id] == (number + 1, 0)
        assert memory[silent.id] == (0, number)


def test_a_worker_is_silent_if_one_listens_and_hears_nothing(
    engine: Engine, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LISTEN_S", 0.3)
    job = make_job()
    assert listen(engine, job) == 0.3
    with Heartbeat(engine, job):
        assert listen(engine, job) is None
