"""Places of their own for tests that run the pipeline."""

import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest
from hypothesis import settings
from sqlalchemy import Engine

from triangulation_pipeline.storage.engine import open_database
from triangulation_pipeline.storage.settings import read_settings

settings.register_profile("the same every time", derandomize=True, deadline=None)
settings.load_profile("the same every time")

ROOT = Path(__file__).parent.parent

# The keys of the S3 server that the tests use; any will do for one of this process.
S3_ACCESS_KEY_ID = os.environ.get("TRIANGULATION_TEST_S3_ACCESS_KEY_ID", "AKIATHETESTSKEY")
S3_SECRET = os.environ.get("TRIANGULATION_TEST_S3_SECRET_ACCESS_KEY", "the-tests-secret")


def cannot_run(why: str) -> NoReturn:
    """Skips the test, which lacks something of this machine; fails it in CI, which has everything."""
    if os.environ.get("CI"):
        pytest.fail(why, pytrace=False)
    pytest.skip(why)


def make_home(folder: Path) -> Path:
    """A project root with nothing but the shipped instance settings, whose storage stays inside it."""
    folder.mkdir(parents=True)
    settings = (ROOT / "dagster.yaml").read_text().replace("base_dir: .dagster", f"base_dir: {folder}/.dagster")
    (folder / "dagster.yaml").write_text(settings)
    return folder


@pytest.fixture(autouse=True)
def same_folder() -> Iterator[None]:
    """Each test ends in the folder it began in: the commands change to their home, which is gone after the test."""
    before = Path.cwd()
    yield
    os.chdir(before)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty home, and the environment of somebody who works in it."""
    folder = make_home(tmp_path / "home")
    monkeypatch.setenv("DAGSTER_HOME", str(folder))
    monkeypatch.delenv("TRIANGULATION_DATABASE_URL", raising=False)
    monkeypatch.delenv("TRIANGULATION_OBJECT_STORE", raising=False)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def engine(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    """The database of the home, which is the current folder."""
    monkeypatch.chdir(home)
    engine = open_database(read_settings().database_url)
    yield engine
    engine.dispose()


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """The address of a server that speaks S3 over HTTP: TRIANGULATION_TEST_S3_ENDPOINT, or one of this process."""
    if endpoint := os.environ.get("TRIANGULATION_TEST_S3_ENDPOINT"):
        yield endpoint
        return
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


def use_s3(patch: pytest.MonkeyPatch, endpoint: str) -> None:
    """The environment of somebody who uses the server of that address."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_DEFAULT_REGION", "AWS_REGION", "AWS_ENDPOINT_URL"):
        patch.delenv(name, raising=False)
    patch.setenv("AWS_CONFIG_FILE", "/dev/null")
    patch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    patch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
    patch.setenv("AWS_ACCESS_KEY_ID", S3_ACCESS_KEY_ID)
    patch.setenv("AWS_SECRET_ACCESS_KEY", S3_SECRET)


def new_bucket_name() -> str:
    """A name that no other test uses."""
    return f"bucket-{uuid.uuid4().hex}"
