"""What can be seen of docker/ without an engine; docker/smoke-test sees the rest."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import dagster as dg
import pytest
import yaml
from click.testing import CliRunner
from dagster._cli.instance import instance_cli
from dagster._core.storage.compute_log_manager import ComputeIOType

from triangulation_pipeline_tests.conftest import ROOT, cannot_run, new_bucket_name, use_s3
from triangulation_pipeline_tests.postgres import NO_BINARIES, find_binaries, temporary_server

DOCKER = ROOT / "docker"
COMPOSE = (DOCKER / "compose.yaml").read_text()
EXAMPLE = (DOCKER / ".env.example").read_text()
SERVICES: dict[str, Any] = yaml.safe_load(COMPOSE)["services"]

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
    assert server["host"] in SERVICES
    command = (DOCKER / "Dockerfile").read_text().split("CMD ")[1]
    assert f'"--port", "{server["port"]}"' in command
    assert server["location_name"] == "triangulation_pipeline"


@pytest.fixture
def instance_home(tmp_path: Path, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home with the instance of the containers, on a database that belongs to its role."""
    if find_binaries() is None:
        cannot_run(NO_BINARIES)
    use_s3(monkeypatch, s3_endpoint)
    bucket = new_bucket_name()
    boto3.client("s3", region_name="us-east-1").create_bucket(Bucket=bucket)
    with temporary_server() as server:
        url = server.create_database()
        with server.administrator() as connection:
            connection.execute(f'ALTER DATABASE "{url.database}" OWNER TO {url.username}'.encode())
        config = yaml.safe_load((DOCKER / "dagster.yaml").read_text())
        config["storage"]["postgres"]["postgres_db"]["port"] = url.port
        (tmp_path / "dagster.yaml").write_text(yaml.safe_dump(config))
        values = {"HOST": url.host, "DB": url.database, "USERNAME": url.username, "PASSWORD": url.password}
        for name, value in values.items():
            monkeypatch.setenv(f"DAGSTER_PG_{name}", str(value))
        monkeypatch.setenv("DAGSTER_LOGS_BUCKET", bucket)
        monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
        yield tmp_path


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
