"""PostgreSQL behind a pooler: settings hold in every transaction, and few connections are enough."""

import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import URL, Engine, text

from triangulation_pipeline.jobs.continuation import start_job
from triangulation_pipeline.jobs.liveness import Heartbeat
from triangulation_pipeline.jobs.record import read_metrics, write_epoch
from triangulation_pipeline.jobs.states import complete_job
from triangulation_pipeline.network import NORTH_WEST_ITALY
from triangulation_pipeline.storage import postgresql
from triangulation_pipeline.storage.datasets import list_datasets, read_samples, verify_dataset, write_dataset
from triangulation_pipeline.storage.engine import open_database, reading, writing
from triangulation_pipeline.storage.errors import StorageError
from triangulation_pipeline.storage.evaluations import NewEvaluation, record_evaluation
from triangulation_pipeline.storage.objects import StoredObject
from triangulation_pipeline.storage.registry import NewModel, register_model
from triangulation_pipeline.storage.tables import metadata
from triangulation_pipeline.storage.views import VIEWS, model_overview, read_view
from triangulation_pipeline.training.config import TrainingConfig
from triangulation_pipeline.training.metrics import METRIC_COLUMNS, EpochMetrics
from triangulation_pipeline_tests.conftest import cannot_run
from triangulation_pipeline_tests.pgbouncer import NO_PGBOUNCER, find_pgbouncer, temporary_pgbouncer
from triangulation_pipeline_tests.postgres import ROLE, OwnServer
from triangulation_pipeline_tests.storage.conftest import a_spec, make_batch
from triangulation_pipeline_tests.storage.model_rows import get_model

pytestmark = pytest.mark.production

# What administrators are told to write where a client sends settings.
USUAL = {"ignore_startup_parameters": "extra_float_digits, options"}
EPOCHS = 12  # more than a driver lets pass before it prepares a statement


@pytest.fixture(scope="module", autouse=True)
def _pgbouncer_is_there() -> None:
    if find_pgbouncer() is None:
        cannot_run(NO_PGBOUNCER)


@pytest.fixture(params=["session", "transaction"])
def pool_mode(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=["owner", "least rights"])
def direct(request: pytest.FixtureRequest, postgresql_server: OwnServer, new_database: Callable[..., URL]) -> URL:
    """A database as its role reaches it without a pooler."""
    url = new_database(postgresql_server)
    if request.param == "owner":
        with postgresql_server.administrator() as connection:
            connection.execute(f"ALTER DATABASE {url.database} OWNER TO {ROLE}")
    return url


def opened(url: URL) -> Engine:
    return open_database(url.render_as_string(hide_password=False))


@pytest.fixture
def engine(direct: URL, pool_mode: str) -> Iterator[Engine]:
    with temporary_pgbouncer(direct, pool_mode=pool_mode, **USUAL) as url:
        yield opened(url)


def places(server: OwnServer, database: str | None) -> set[tuple[str, str]]:
    """Schema and name of whatever somebody made in a database."""
    with server.administrator(str(database)) as connection:
        return set(
            connection.execute(
                "SELECT nspname, relname FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace "
                "WHERE relkind IN ('r', 'v') AND nspname NOT IN ('pg_catalog', 'information_schema')"
            ).fetchall()
        )


def work(engine: Engine) -> str:
    """A dataset, a job's epochs beside its signs of life, and a registration; the model's name."""
    job_id, spec = str(uuid.uuid4()), a_spec(network=NORTH_WEST_ITALY.model_copy(update={"name": "Köln 東京"}))
    dataset, _ = write_dataset(
        engine,
        spec,
        name=spec.dataset_id,
        batches=[make_batch(0, 600), make_batch(600, 600)],
        quality_metrics=dict,
    )
    assert verify_dataset(engine, dataset.id) == dataset
    assert len(read_samples(engine, dataset.id)) == 1200
    job = start_job(
        engine,
        job_id=job_id,
        run_id=job_id,
        config=TrainingConfig(epochs=EPOCHS),
        synthetic_dataset_id=dataset.id,
    )
    with Heartbeat(engine, job) as heartbeat:
        for epoch in range(1, EPOCHS + 1):
            write_epoch(
                engine,
                job,
                EpochMetrics(epoch=epoch, **dict.fromkeys(METRIC_COLUMNS, float(epoch))),
                StoredObject(f"/state/{epoch}", "e" * 64),
                best_epoch=1,
                best_val_loss=1.0,
            )
        assert heartbeat.lost is None
    complete_job(engine, job)
    assert read_metrics(engine, job.id)["epoch"].tolist() == list(range(1, EPOCHS + 1))
    origin = {"synthetic_dataset_id": dataset.id, "epoch": EPOCHS, "metrics": {"test_rmse_m": 1.0}}
    weights = {"weights_digest": "c" * 64}
    record_evaluation(
        engine,
        NewEvaluation(
            training_job_id=job.id,
            checkpoint_sha256="c" * 64,
            visualization_paths={},
            **weights,
            **origin,
        ),
    )
    return register_model(
        engine,
        NewModel(
            model_name=f"model of {job.id}",
            model_architecture="triangulation",
            pytorch_model_location="/best",
            sha256="c" * 64,
            trained_by_job_id=job.id,
            network_name="n",
            network_digest="d" * 64,
            hyperparameters={},
            passed=True,
            promotion_reason="",
            **weights,
            **origin,
        ),
    ).model.model_name


def test_tables_lie_where_they_lie_without_a_pooler(engine: Engine, direct: URL, postgresql_server: OwnServer) -> None:
    ours = {*metadata.tables, *(view.name for view in VIEWS), "alembic_version"}
    assert places(postgresql_server, direct.database) == {("triangulation", name) for name in ours}
    name = work(engine)
    assert [row["model_name"] for row in read_view(opened(direct), model_overview)] == [name]
    assert places(postgresql_server, direct.database) == {("triangulation", name) for name in ours}


def test_timeouts_hold_in_every_transaction(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    for verb in (reading, writing, reading):
        with verb(engine) as connection:
            names = ("search_path", "statement_timeout", "lock_timeout", "client_encoding", "transaction_isolation")
            shown = [connection.exec_driver_sql(f"SHOW {name}").scalar() for name in names]
            assert shown == ["triangulation", "10min", "5min", "UTF8", "read committed"]
    lock = text("LOCK TABLE synthetic_datasets IN ACCESS EXCLUSIVE MODE")
    with writing(engine) as first:
        first.execute(lock)
        monkeypatch.setattr(postgresql, "LOCK_TIMEOUT_S", 0.2)
        with pytest.raises(StorageError, match=r"another process held a lock on it for longer than 0\.2 s"):
            list_datasets(engine)
    monkeypatch.setattr(postgresql, "STATEMENT_TIMEOUT_S", 0.2)
    with (
        pytest.raises(StorageError, match=r"a statement took longer than 0\.2 s"),
        reading(engine) as connection,
    ):
        connection.execute(text("SELECT pg_sleep(5)"))


def test_nothing_stays_behind_in_a_session(engine: Engine, direct: URL) -> None:
    """Neither settings, which another client would get, nor prepared statements, whose names another would take."""
    for _ in range(3):
        with writing(engine) as connection:
            for number in range(20):
                assert connection.scalar(text("SELECT CAST(:number AS integer)"), {"number": number}) == number
    with engine.connect() as connection:
        driver = connection.connection.driver_connection
        assert driver is not None
        assert driver.execute("SHOW search_path").fetchone() == ('"$user", public',)
        assert driver.execute("SELECT count(*) FROM pg_prepared_statements").fetchone() == (0,)


@pytest.mark.parametrize("connections", [1, 2, 3])
def test_a_small_pool_is_enough_for_many(direct: URL, pool_mode: str, connections: int) -> None:
    """Three that work at once, each with its signs of life, and each again and again on other servers' sessions."""
    with temporary_pgbouncer(direct, pool_mode=pool_mode, default_pool_size=connections, **USUAL) as url:
        engines = [opened(url) for _ in range(3)]
        with ThreadPoolExecutor(3) as pool:
            names = list(pool.map(work, engines))
        assert all(get_model(engines[0], name).is_production for name in names)


def test_no_parameter_has_to_be_ignored(direct: URL, pool_mode: str) -> None:
    with temporary_pgbouncer(direct, pool_mode=pool_mode) as url:
        work(opened(url))


def test_many_may_migrate_at_once(direct: URL, pool_mode: str) -> None:
    with temporary_pgbouncer(direct, pool_mode=pool_mode, **USUAL) as url, ThreadPoolExecutor(3) as pool:
        for engine in pool.map(opened, [url] * 3):
            assert list_datasets(engine) == []


def test_a_mode_without_transactions_is_refused(direct: URL, postgresql_server: OwnServer) -> None:
    with (
        temporary_pgbouncer(direct, pool_mode="statement", **USUAL) as url,
        pytest.raises(StorageError, match="cannot be opened: the pooler is in statement mode; it needs transaction or"),
    ):
        opened(url)
    assert places(postgresql_server, direct.database) == set()


def test_lost_settings_are_refused_before_anything_is_made(
    direct: URL, postgresql_server: OwnServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a pooler would do that changes sessions in mid-transaction."""
    monkeypatch.setattr(postgresql, "begin_transaction", lambda connection: None)
    with pytest.raises(
        StorageError, match=r"does not keep the settings .*search_path is '\"\$user\", public', not 'tri"
    ):
        opened(direct)
    assert places(postgresql_server, direct.database) == set()


def test_what_a_pooler_refuses_is_told_as_a_server_would(direct: URL) -> None:
    with temporary_pgbouncer(direct, **USUAL) as url:
        for changes, says in (
            (url.set(password="s3cret"), f"wrong user or password for user '{ROLE}'"),
            (url.set(username="nobody", password="s3cret"), "wrong user or password for user 'nobody'"),
            (url.set(database="elsewhere"), "there is no database 'elsewhere' on this server; create it first"),
        ):
            with pytest.raises(StorageError, match=f"cannot be opened: {says}") as caught:
                opened(changes)
            assert "s3cret" not in str(caught.value)


def test_a_server_that_is_away_behind_a_pooler_is_one_sentence(
    direct: URL, pool_mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgresql, "CONNECT_TIMEOUT_S", 2)
    with (
        temporary_pgbouncer(direct.set(port=1), pool_mode=pool_mode, **USUAL) as url,
        pytest.raises(StorageError, match="cannot be opened: no answer within 2 s") as caught,
    ):
        opened(url)
    assert "\n" not in str(caught.value)
    assert str(direct.password) not in str(caught.value)
