"""``triangulation plan``."""

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from triangulation_pipeline.cli import main
from triangulation_pipeline.network import NORTH_WEST_ITALY
from triangulation_pipeline.physics.plan_cells import service_cells
from triangulation_pipeline_tests.conftest import ROOT

ITALY = ROOT / "docker" / "networks" / "north-west-italy.yaml"
FILES = {"plan.html", "plan.json", "cells.geojson", "bound.png", "hdop.png", "receivers.png"}


def plan(*arguments: str | Path, width: int = 80) -> Result:
    return CliRunner(env={"COLUMNS": str(width)}).invoke(main, ["plan", *map(str, arguments)])


@pytest.fixture
def few_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    """A coarse plan, in a third of a second."""
    monkeypatch.setattr(
        "triangulation_pipeline.cli.plan.service_cells", lambda nets, scenario: service_cells(nets, scenario, 16)
    )


@pytest.fixture
def fewer(tmp_path: Path) -> Path:
    """The default network without Genova."""
    path = tmp_path / "fewer.yaml"
    path.write_text(re.sub(r"- name: Genova\n(  .*\n)*", "", ITALY.read_text()).replace("north-west-italy", "fewer"))
    return path


@pytest.mark.usefixtures("few_cells")
def test_a_page_of_numbers() -> None:
    found = plan(ITALY)
    assert found.exit_code == 0, found.output
    lines = found.stdout.splitlines()
    assert lines[0] == f"north-west-italy ({NORTH_WEST_ITALY.digest[:8]}): 7 sites, area of 185 x 160 km"
    assert lines[1] == "transmitters of 5 / 25 / 50 W at 145 MHz, path loss: exponent 3.5"
    assert lines[3].split() == ["p50", "m", "p95", "m", "hull", "m", "area", "%", "HDOP<2", "hear", "3", "hear", "4"]
    table = lines[4:13]
    assert [line.partition("  ")[0] for line in table[:3]] == ["all 7 sites", "with one more", "without Milano-Baggio"]
    assert all(len(line) <= 80 for line in lines[:13])
    assert any(line.startswith("without Milano-Baggio, the bound of 95 % of the area goes from") for line in lines)
    assert any(line.startswith("with one more site at ") for line in lines)
    assert "odd:" not in found.output


@pytest.mark.usefixtures("few_cells")
def test_what_a_program_reads(fewer: Path) -> None:
    found = json.loads(plan(ITALY, "--json", "--preset", "valley", "--power-w", "50", "--compare", fewer).stdout)
    assert found["scenario"]["tx_power_w"] == [50.0]
    assert found["scenario"]["path_loss_exponent"] == 4.5
    assert (found["network"], found["other_network"]) == ("north-west-italy", "fewer")
    assert found["warnings"] == []
    kinds = [row["kind"] for row in found["rows"]]
    assert kinds == ["all", "other", "further", *7 * ["without"]]
    assert found["rows"][1]["located_share"] <= found["rows"][0]["located_share"] <= found["rows"][2]["located_share"]


@pytest.mark.usefixtures("few_cells")
def test_settings_of_the_scenario(tmp_path: Path) -> None:
    chosen = ["--set", "frequency_mhz=433", "--set", "tx_power_w=1,2", "--set", "tx_power_share=0.5,0.5"]
    scenario = json.loads(plan(ITALY, "--json", *chosen).stdout)["scenario"]
    assert (scenario["frequency_mhz"], scenario["tx_power_w"]) == (433, [1, 2])


@pytest.mark.usefixtures("few_cells")
def test_files_to_keep_and_to_send(tmp_path: Path, fewer: Path) -> None:
    folder = tmp_path / "new" / "plan"
    found = plan(ITALY, "--out", folder)
    assert found.exit_code == 0, found.output
    assert f"written: {folder}/plan.html" in found.stdout
    assert {path.name for path in folder.iterdir()} == FILES
    assert json.loads((folder / "plan.json").read_text())["cells"] == 256
    assert len(json.loads((folder / "cells.geojson").read_text())["features"]) == 7 + 1 + 256
    page = (folder / "plan.html").read_text()
    assert page.count("data:image/png;base64,") == 3
    # Again, with another network beside it.
    assert plan(ITALY, "--out", folder, "--compare", fewer).exit_code == 0
    assert {path.name for path in folder.iterdir()} == FILES | {"other_bound.png", "difference.png"}
    assert (folder / "plan.html").read_text().count("data:image/png;base64,") == 5


@pytest.mark.usefixtures("few_cells")
def test_a_network_of_two_clocks_is_planned_with_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "two.csv"
    path.write_text("name,lat,lon,timing\na,45,7,gps\nb,45.5,7.5,gps\nc,45,8,none\n")
    found = plan(path)
    assert found.exit_code == 0, found.output
    assert "odd: 2 of the 3 sites measure arrival times" in found.stdout


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nowhere.yaml"], "network file nowhere.yaml does not exist"),
        ([ITALY, "--compare", "nowhere.yaml"], "network file nowhere.yaml does not exist"),
        ([ITALY, "--set", "frequency_mhz"], "--set takes NAME=VALUE, got 'frequency_mhz'"),
        ([ITALY, "--set", "frequency=4"], "the scenario has no parameter 'frequency'; meant frequency_mhz?"),
        ([ITALY, "--set", "frequency_mhz=4"], "scenario: frequency_mhz: Input should be greater than or equal to 30"),
        ([ITALY, "--set", "tx_power_w=4"], "scenario: tx_power_share must have one share for each of the 1 values"),
        ([ITALY, "--set", "tx_power_w=4", "--power-w", "3"], "--power-w is the one power"),
        ([ITALY, "--set", "path_loss=hata"], "path_loss hata holds for"),
        ([ITALY, "--set", "min_detections=9"], "min_detections (9) must not exceed the network's 7 sites"),
        ([ITALY, "--preset", "hills"], "'hills' is not one of"),
        ([ITALY, "--out", ITALY], "is not a folder"),
        ([ITALY, "--out", ITALY / "plan"], "is not a folder"),
        ([ITALY, "--out", "/proc/1/plan"], "cannot be written to"),
    ],
)
def test_what_is_wrong_is_refused_before_any_work(
    arguments: list[str | Path], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_work(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr("triangulation_pipeline.physics.plan.values_of", no_work)
    found = plan(*arguments)
    assert found.exit_code in {1, 2}
    error = [line for line in found.stderr.splitlines() if line.startswith("Error: ")]
    assert len(error) == 1, found.output
    assert sentence in error[0]
    assert len(error[0]) < 300


@pytest.mark.usefixtures("few_cells")
def test_nothing_is_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        if "hdop" in path.name:
            real(path, content[:100])
            raise OSError(28, "No space left on device")
        return real(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    found = plan(ITALY, "--out", tmp_path / "plan")
    assert found.exit_code == 1
    assert found.stderr == f"Error: --out: {tmp_path}/plan cannot be written to: No space left on device\n"
    names = {path.name for path in (tmp_path / "plan").iterdir()}
    assert names <= FILES
    assert "hdop.png" not in names
