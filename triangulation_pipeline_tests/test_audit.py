"""`make audit` is green only where every pin was looked up: its command, before a stand-in for the service."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from triangulation_pipeline_tests.conftest import ROOT

# pip-audit, whose requests are answered here.
PROGRAM = """
import io, json, sys
import requests

def answer(self, request, *_, **__):
    if {status} is None:
        raise requests.ConnectionError("the service is away")
    found = requests.Response()
    found.status_code, found.url, found.request = {status}, request.url, request
    listed = {holes} if "/torch/" in request.url else []
    found.raw = io.BytesIO(json.dumps({{"urls": [], "releases": {{}}, "vulnerabilities": listed}}).encode())
    return found

requests.adapters.HTTPAdapter.send = answer
from pip_audit._cli import audit
sys.argv = ["pip-audit", *{arguments}]
audit()
"""
HOLE = {"id": "PYSEC-0", "details": "a hole", "fixed_in": [], "aliases": [], "withdrawn": None, "link": ""}


def audit(tmp_path: Path, status: int | None, *, hole: bool = False) -> subprocess.CompletedProcess[str]:
    (arguments,) = re.findall(r"(?m)^\t\$\(BIN\)/pip-audit (.*)$", (ROOT / "Makefile").read_text())
    program = PROGRAM.format(status=status, holes=[HOLE] if hole else [], arguments=arguments.split())
    caches = {"PIP_CACHE_DIR": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    command = [sys.executable, "-c", program]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, **caches}, capture_output=True, text=True, timeout=120)


def test_where_every_pin_was_looked_up_it_passes(tmp_path: Path) -> None:
    done = audit(tmp_path, 200)
    assert (done.returncode, "No known vulnerabilities found" in done.stderr) == (0, True), done.stderr


@pytest.mark.parametrize(
    ("status", "said"),
    [(None, "the service is away"), (404, "could not be audited"), (503, "ServiceError")],
    ids=["away", "knows nothing", "out of order"],
)
def test_where_the_service_cannot_be_asked_it_fails(tmp_path: Path, status: int | None, said: str) -> None:
    done = audit(tmp_path, status)
    assert done.returncode != 0, done.stdout + done.stderr
    assert said in done.stderr
    assert "No known vulnerabilities found" not in done.stderr


def test_where_a_pin_has_a_hole_it_fails(tmp_path: Path) -> None:
    done = audit(tmp_path, 200, hole=True)
    assert done.returncode != 0, done.stdout + done.stderr
    assert "PYSEC-0" in done.stdout


def test_versions_with_a_known_hole_are_below_the_lower_bounds() -> None:
    """For those who install without constraints.txt."""
    bounds = (ROOT / "pyproject.toml").read_text()
    for bound in ('"torch>=2.10"', '"starlette>=1.3"'):
        assert bound in bounds
