"""Places of their own for tests that run the pipeline."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def make_home(folder: Path) -> Path:
    """A project root with nothing but the shipped instance settings, whose storage stays inside it."""
    folder.mkdir(parents=True)
    settings = (ROOT / "dagster.yaml").read_text().replace("base_dir: .dagster", f"base_dir: {folder}/.dagster")
    (folder / "dagster.yaml").write_text(settings)
    return folder


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty home, and the environment of somebody who works in it."""
    folder = make_home(tmp_path / "home")
    monkeypatch.setenv("DAGSTER_HOME", str(folder))
    monkeypatch.delenv("TRIANGULATION_DATABASE_URL", raising=False)
    monkeypatch.delenv("TRIANGULATION_OBJECT_STORE", raising=False)
    yield folder
    shutil.rmtree(folder)
