"""``triangulation network --check``: what is told of a network before anything is trained for it."""

import json
from pathlib import Path

from click.testing import CliRunner, Result

from triangulation_pipeline.cli import main
from triangulation_pipeline.network import NORTH_WEST_ITALY

FIJI = "name: fiji\nsites:\n  - {name: Nadi, lat: -17.8, lon: 177.4}\n  - {name: Taveuni, lat: -16.8, lon: -179.9}\n"
FIJI += "  - {name: Suva, lat: -18.1, lon: 178.4, timing: none}\n"


def check(*arguments: str, width: int = 80) -> Result:
    return CliRunner(env={"COLUMNS": str(width)}).invoke(main, ["network", *arguments])


def test_the_default_network_is_where_it_is_said_to_be(tmp_path: Path) -> None:
    path = tmp_path / "sites.yaml"
    path.write_text(check().output)
    found = check("--check", str(path))
    assert found.exit_code == 0
    assert "north-west-italy" in found.output
    assert f"({NORTH_WEST_ITALY.digest[:8]}): 7 sites, 145.5 km west to east, 120.5 km south to north," in found.output
    assert "around 44.9365 N 8.1965 E: https://www.openstreetmap.org/?mlat=44.9365&mlon=8.1965" in found.output
    assert "7 sites measure arrival times, so the network can locate by time" in found.output
    assert "odd:" not in found.output
    table = [line for line in found.output.splitlines() if "│" in line or "┃" in line]
    assert max(map(len, table)) <= 80
    assert any(line.split()[:3] == ["Genova", "│", "44.3950"] for line in table)


def test_what_a_program_reads(tmp_path: Path) -> None:
    path = tmp_path / "fiji.yaml"
    path.write_text(FIJI)
    found = json.loads(check("--check", str(path), "--json").output)
    assert (found["name"], found["num_timed_sites"], found["locates_by_time"]) == ("fiji", 2, False)
    assert abs(found["lat"] + 17.57) < 0.01
    assert abs(found["lon"] - 178.64) < 0.01
    assert [site["nearest"] for site in found["sites"]] == ["Suva", "Suva", "Nadi"]
    assert abs(found["sites"][0]["nearest_km"] - 111.0) < 0.1
    assert found["warnings"][0].startswith("2 of the 3 sites measure arrival times; without three")


def test_what_is_odd_is_said_and_what_is_wrong_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "fiji.yaml"
    path.write_text(FIJI)
    found = check("--check", str(path))
    assert found.exit_code == 0
    assert "2 sites measure arrival times: too few to locate by time, which takes three" in found.output
    assert "odd: 2 of the 3 sites measure arrival times" in found.output
    path.write_text(FIJI.replace("lat: -17.8, lon: 177.4", "lat: 177.4, lon: -17.8"))
    found = check("--check", str(path))
    assert found.exit_code == 1
    assert found.output.startswith(f"Error: network file {path}: site 1 ('Nadi'): lat: ")
    assert "lat and lon look swapped" in found.output


def test_options_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    for arguments in (["--json"], ["--check", "x", "--random-sites", "5"], ["--seed", "3"]):
        assert check(*arguments).exit_code == 2
