"""Real aircraft: the commands of ``docs/locating.md`` on the recordings of LocaRDS, where these are at hand."""

import json
import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from triangulation_pipeline_tests.conftest import ROOT
from triangulation_pipeline_tests.test_cli_locate import triangulation
from triangulation_pipeline_tests.test_documentation import blocks

PAGE = "docs/locating.md"
RECORDINGS = Path(os.environ.get("TRIANGULATION_REALDATA", ROOT.parent / "shared" / "realdata")) / "locards_mlat"


@pytest.mark.skipif(not RECORDINGS.is_dir(), reason="needs LocaRDS in the folder TRIANGULATION_REALDATA/locards_mlat")
def test_the_commands_of_the_page_locate_aircraft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for file in RECORDINGS.glob("*.csv"):
        shutil.copyfile(file, tmp_path / file.name)
    monkeypatch.chdir(tmp_path)
    (mapping,) = blocks(PAGE, "yaml")
    Path("locards.yaml").write_text(mapping.content)
    apart, commands = (
        next(block.content for block in blocks(PAGE, "bash") if block.content.startswith(beginning))
        for beginning in ("awk", "triangulation calibrate known")
    )
    subprocess.run(apart, shell=True, check=True)
    calibrate, locate = commands.replace("\\\n", "").splitlines()
    assert triangulation(*shlex.split(calibrate)[1:]).exit_code == 0
    told = json.loads(triangulation(*shlex.split(locate)[1:], "--json").stdout)
    assert (told["located"], told["refused"]) == (262, [])
    assert Path("aircraft.html").stat().st_size > 100_000
    # 45 m and 98 m; a single wrong crossing would double the second.
    assert told["known"]["median_error_m"] < 48
    assert told["known"]["rmse_m"] < 110
    assert told["known"]["within_95"] > 0.6
