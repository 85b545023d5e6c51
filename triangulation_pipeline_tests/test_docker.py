"""What can be seen of docker/ without an engine; docker/smoke-test sees the rest."""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
import dagster as dg
import psycopg
import pytest
import yaml
from click.testing import CliRunner
from dagster._cli.instance import instance_cli
from dagster._core.storage.compute_log_manager import ComputeIOType

from triangulation_pipeline.storage.datasets import verify_dataset, write_dataset
from triangulation_pipeline.storage.engine import open_database
from triangulation_pipeline_tests.conftest import ROOT, cannot_run, new_bucket_name, use_s3
from triangulation_pipeline_tests.postgres import NO_TIMESCALEDB, OwnServer, find_timescaledb, temporary_server
from triangulation_pipeline_tests.storage.conftest import a_spec, make_batch

DOCKER = ROOT / "docker"
COMPOSE = (DOCKER / "compose.yaml").read_text()
EXAMPLE = (DOCKER / ".env.example").read_text()
SERVICES: dict[str, Any] = yaml.safe_load(COMPOSE)["services"]
NETWORKS: dict[str, Any] = yaml.safe_load(COMPOSE)["networks"]
OURS = {"code", "webserver", "daemon"}

SECRETS = set(re.findall(r"(?m)^(\w+)=", EXAMPLE))
DEFAULTS = dict(re.findall(r"(?m)^#(\w+)=(.*)$", EXAMPLE))


def test_compose_refuses_to_start_without_each_secret_and_the_example_has_none() -> None:
    variables = re.findall(r"\$\{(\w+)(:\?|:-|-)?([^}]*)\}", COMPOSE)
    assert {name for name, operator, _ in variables if operator == ":?"} == SECRETS
    assert not [name for name, operator, _ in variables if not operator]
    assert re.findall(r"(?m)^\w+=$", EXAMPLE) == re.findall(r"(?m)^\w+=.*$", EXAMPLE)


def test_what_may_be_changed_is_in_the_example_with_its_default() -> None:
    found = re.findall(r"\$\{(\w+):?-([^}]*)\}", COMPOSE)
    assert {name for name, _ in found} == set(DEFAULTS)
    assert all(DEFAULTS[name] == default for name, default in found)
    dockerfile = dict(re.findall(r"(?m)^ARG (\w+)=(.*)$", (DOCKER / "Dockerfile").read_text()))
    assert dockerfile == {name: DEFAULTS[name] for name in dockerfile}


def test_only_the_webserver_is_published_and_on_this_machine_alone() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert list(published) == ["webserver"]
    assert all(port.startswith("127.0.0.1:") for port in published["webserver"])


def test_the_workspace_names_the_code_server() -> None:
    (server,) = (entry["grpc_server"] for entry in yaml.safe_load((DOCKER / "workspace.yaml").read_text())["load_from"])
    assert f"--host {server['host']} --port {server['port']} " in SERVICES["code"]["command"]
    assert server["location_name"] == "triangulation_pipeline"
    # All but the place is the image's own command.
    command = json.loads((DOCKER / "Dockerfile").read_text().split("CMD ")[1])
    assert " ".join(command).replace("0.0.0.0", server["host"]) == SERVICES["code"]["command"]


def test_database_and_object_store_reach_no_port_of_ours() -> None:
    """Ours listen on the network that those two are not on, by a name that they have there alone."""
    assert {name: list(service["networks"]) for name, service in SERVICES.items()} == {
        **{name: ["storage"] for name in ("timescaledb", "minio")},
        **{name: ["storage", "control"] for name in OURS},
    }
    assert NETWORKS == {"storage": {"internal": True}, "control": None}
    for name in ("code", "webserver"):
        (alias,) = SERVICES[name]["networks"]["control"]["aliases"]
        assert SERVICES[name]["networks"]["storage"] == {}
        (host,) = re.findall(r"--host (\S+)", SERVICES[name]["command"])
        assert host == alias == f"{name}.control"
    assert "--host" not in SERVICES["daemon"]["command"]


def test_the_webserver_is_behind_the_gate_and_knows_its_name() -> None:
    assert SERVICES["webserver"]["command"].startswith("triangulation webserver ")
    hosts = SERVICES["webserver"]["environment"]["TRIANGULATION_WEBSERVER_HOSTS"]
    called = urlsplit(SERVICES["code"]["environment"]["TRIANGULATION_WEBSERVER_URL"]).hostname
    assert hosts == f"{called},${{TRIANGULATION_WEBSERVER_HOSTS:-}}"


def test_containers_have_no_right_that_they_do_without() -> None:
    for name, service in SERVICES.items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert "privileged" not in service, name
        assert "memory" in service["deploy"]["resources"]["limits"], name
        assert service.get("read_only", False) == (name in OURS), name
    added = {name: set(service["cap_add"]) for name, service in SERVICES.items() if "cap_add" in service}
    assert added == {"timescaledb": {"CHOWN", "DAC_OVERRIDE", "FOWNER", "SETGID", "SETUID"}}
    assert "USER 10001" in (DOCKER / "Dockerfile").read_text()


def test_images_are_named_by_their_bytes() -> None:
    for name in ("PYTHON_IMAGE", "TIMESCALEDB_IMAGE", "MINIO_IMAGE"):
        assert re.fullmatch(r"[\w./-]+:[\w.-]+@sha256:[0-9a-f]{64}", DEFAULTS[name]), name


PASSWORDS = {"dagster": "a-password-of-dagster", "pipeline": "a-password-of-pipeline"}


@pytest.fixture(scope="module")
def server() -> Iterator[OwnServer]:
    """A server of TimescaleDB that docker/init-databases.sh has prepared."""
    if find_timescaledb() is None:
        cannot_run(NO_TIMESCALEDB)
    with temporary_server(timescaledb=True) as server:
        with server.administrator() as connection:
            connection.execute("DROP ROLE pipeline")  # what other tests want of a server
        admin = {"PGHOST": server.admin.host, "PGPORT": server.admin.port, "PGPASSWORD": server.admin.password}
        variables = {"DAGSTER_PG_PASSWORD": PASSWORDS["dagster"], "TRIANGULATION_PG_PASSWORD": PASSWORDS["pipeline"]}
        environment = {**variables, "POSTGRES_USER": str(server.admin.username), "PATH": os.environ["PATH"]}
        environment |= {name: str(value) for name, value in admin.items()}
        script = DOCKER / "init-databases.sh"
        done = subprocess.run(["sh", script], env=environment, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
        yield server


def url_of(server: OwnServer, role: str, database: str) -> str:
    changed = server.admin.set(drivername="postgresql", username=role, password=PASSWORDS[role], database=database)
    return changed.render_as_string(hide_password=False)


@pytest.mark.production
def test_the_pipeline_migrates_and_writes_with_the_rights_it_is_given(server: OwnServer) -> None:
    engine = open_database(url_of(server, "pipeline", "triangulation"))
    record, _ = write_dataset(
        engine,
        a_spec(),
        name="of the containers",
        batches=[make_batch(0, 20)],
        quality_metrics=dict,
    )
    assert verify_dataset(engine, record.id).num_samples == 20
    engine.dispose()
    with server.administrator("triangulation") as connection:
        made = connection.execute("SELECT hypertable_name FROM timescaledb_information.hypertables ORDER BY 1")
        assert made.fetchall() == [("synthetic_training_samples",), ("training_metrics",)]


@pytest.mark.production
@pytest.mark.parametrize(
    ("role", "own", "schema", "others"),
    [("pipeline", "triangulation", "triangulation", "dagster"), ("dagster", "dagster", "public", "triangulation")],
)
def test_neither_role_has_another_right(server: OwnServer, role: str, own: str, schema: str, others: str) -> None:
    with psycopg.connect(url_of(server, role, own), autocommit=True) as connection:
        for statement in (
            f"CREATE EXTENSION pgcrypto SCHEMA {schema}",
            f"CREATE EXTENSION hstore SCHEMA {schema}",
            "CREATE SCHEMA more",
            "CREATE TEMPORARY TABLE hidden (a int)",
            "CREATE DATABASE more",
            "CREATE ROLE more",
            "COPY (SELECT 1) TO PROGRAM 'true'",
            "SELECT pg_read_file('/etc/passwd')",
            "SELECT * FROM pg_authid",
            *(["CREATE TABLE public.more (a int)"] if role == "pipeline" else []),
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement)
        attributes = "rolsuper, rolcreatedb, rolcreaterole, rolreplication, rolbypassrls"
        asked = connection.execute(f"SELECT {attributes} FROM pg_roles WHERE rolname = current_user")
        assert asked.fetchone() == (False,) * 5
    for database in (others, "postgres", "template1"):
        with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
            psycopg.connect(url_of(server, role, database))


@pytest.mark.production
def test_the_servers_log_has_no_password(server: OwnServer) -> None:
    log = server.log.read_text()
    assert "listening on" in log
    assert not [password for password in PASSWORDS.values() if password in log]


@pytest.fixture
def instance_home(tmp_path: Path, server: OwnServer, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with the instance of the containers, on the database that is prepared for it."""
    use_s3(monkeypatch, s3_endpoint)
    bucket = new_bucket_name()
    boto3.client("s3", region_name="us-east-1").create_bucket(Bucket=bucket)
    config = yaml.safe_load((DOCKER / "dagster.yaml").read_text())
    config["storage"]["postgres"]["postgres_db"]["port"] = server.admin.port
    (tmp_path / "dagster.yaml").write_text(yaml.safe_dump(config))
    values = {"HOST": server.admin.host, "DB": "dagster", "USERNAME": "dagster", "PASSWORD": PASSWORDS["dagster"]}
    for name, value in values.items():
        monkeypatch.setenv(f"DAGSTER_PG_{name}", str(value))
    monkeypatch.setenv("DAGSTER_LOGS_BUCKET", bucket)
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    return tmp_path


@pytest.mark.production
def test_the_instance_keeps_runs_and_the_pools_limit_in_postgresql(instance_home: Path) -> None:
    @dg.job
    def trivial() -> None:
        @dg.op
        def says_so() -> None:
            print("so")

        says_so()

    with dg.DagsterInstance.get() as instance:
        assert trivial.execute_in_process(instance=instance).success
    (command,) = re.findall(r"dagster instance (.*) &&", SERVICES["daemon"]["command"])
    done = CliRunner().invoke(instance_cli, command.split())
    assert done.exit_code == 0, done.output
    with dg.DagsterInstance.get() as instance:
        (run,) = instance.get_runs()
        assert run.is_success
        logs = instance.compute_log_manager.get_log_keys_for_log_key_prefix(
            [run.run_id, "compute_logs"], ComputeIOType.STDOUT
        )
        assert len(logs) == 1
        assert instance.get_concurrency_config().pool_config.pool_granularity.value == "run"
        # The very first two: a default limit would let both in.
        slots = instance.event_log_storage
        first, second = (slots.claim_concurrency_slot("training", run, "trained_model") for run in ("one", "two"))
        assert first.is_claimed
        assert not second.is_claimed


OPERATIONS = (ROOT / "docs" / "operations.md").read_text()


def test_a_backup_can_be_read_by_its_owner_alone(tmp_path: Path) -> None:
    """The printed commands, with the mask of an ordinary shell; the container's own is run here, in the same manner."""
    (of_containers,) = re.findall(
        r"(?m)^```bash\n(mkdir -p -m 700 backup\ncompose stop\n.*?)```", OPERATIONS, re.DOTALL
    )
    (embedded,) = re.findall(r"`(mkdir -p [^`]*cp -a \.dagster [^`]*)`", OPERATIONS)
    (tmp_path / ".dagster").mkdir()
    (tmp_path / ".dagster" / "triangulation.db").touch()
    (tmp_path / "docker").mkdir()
    (tmp_path / "docker" / ".env").touch()
    (tmp_path / "from").mkdir()
    script = f"""
    set -eu
    umask 022
    compose() {{ :; }}
    docker() {{ for last; do :; done; sh -c "$(echo "$last" | sed 's#/to/#backup/#; s#/from#from#')"; }}
    {of_containers}
    {embedded}
    """
    subprocess.run(["bash", "-c", script], cwd=tmp_path, check=True)
    backup = tmp_path / "backup"
    assert backup.stat().st_mode & 0o777 == 0o700
    for name in ("database.tar", "objects.tar", ".env"):
        assert (backup / name).stat().st_mode & 0o777 == 0o600, name
    (copied,) = backup.glob("*-*-*")
    assert (copied / "triangulation.db").exists()
    assert "backup/" in (ROOT / ".gitignore").read_text().splitlines()


@pytest.mark.production
def test_a_database_is_prepared_as_printed() -> None:
    """With and without TimescaleDB, whose line an administrator leaves out."""
    (printed,) = re.findall(r"```sql\n(CREATE DATABASE .*?)```", OPERATIONS, re.DOTALL)
    with_timescaledb = find_timescaledb() is not None
    if not with_timescaledb:
        printed = re.sub(r"(?m)^CREATE EXTENSION .*\n", "", printed)
    with temporary_server(timescaledb=with_timescaledb) as server:
        with server.administrator() as connection:
            connection.execute("ALTER ROLE pipeline PASSWORD 'a-password-of-pipeline'")
        admin = server.admin.set(drivername="postgresql").render_as_string(hide_password=False)
        subprocess.run(["psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", admin], input=printed, text=True, check=True)
        open_database(url_of(server, "pipeline", "triangulation")).dispose()


@pytest.mark.production
def test_wider_rights_of_an_older_database_are_taken_away_as_printed() -> None:
    (printed,) = re.findall(r"```sql\n(REVOKE ALL ON DATABASE .*?)```", OPERATIONS, re.DOTALL)
    if find_timescaledb() is None:
        cannot_run(NO_TIMESCALEDB)
    with temporary_server(timescaledb=True) as server:
        with server.administrator() as connection:
            connection.execute("CREATE ROLE postgres SUPERUSER")
            connection.execute("CREATE ROLE dagster LOGIN PASSWORD 'a-password-of-dagster'")
            connection.execute("ALTER ROLE pipeline PASSWORD 'a-password-of-pipeline'")
            connection.execute("CREATE DATABASE dagster OWNER dagster")
            connection.execute("CREATE DATABASE triangulation")
            connection.execute("REVOKE ALL ON DATABASE dagster, triangulation FROM PUBLIC")
            connection.execute("GRANT CONNECT, CREATE ON DATABASE triangulation TO pipeline")
        open_database(url_of(server, "pipeline", "triangulation")).dispose()
        with psycopg.connect(url_of(server, "dagster", "dagster"), autocommit=True) as connection:
            connection.execute("CREATE TABLE runs (a int)")
        admin = server.admin.set(drivername="postgresql").render_as_string(hide_password=False)
        subprocess.run(["psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", admin], input=printed, text=True, check=True)
        for role, own, schema in (("pipeline", "triangulation", "triangulation"), ("dagster", "dagster", "public")):
            with psycopg.connect(url_of(server, role, own), autocommit=True) as connection:
                for statement in (
                    f"CREATE EXTENSION pgcrypto SCHEMA {schema}",
                    "CREATE TEMPORARY TABLE hidden (a int)",
                ):
                    with pytest.raises(psycopg.errors.InsufficientPrivilege):
                        connection.execute(statement)
                connection.execute(f"CREATE TABLE {schema}.more (a int)")
            with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
                psycopg.connect(url_of(server, role, "postgres"))
        open_database(url_of(server, "pipeline", "triangulation")).dispose()
        with psycopg.connect(url_of(server, "dagster", "dagster"), autocommit=True) as connection:
            connection.execute("ALTER TABLE runs ADD b int")
