"""``triangulation calibrate | locate``, on a recording of sites with biases of their own."""

import csv
import json
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from errno import EPIPE
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result

import triangulation_pipeline as tp
from triangulation_pipeline.calibration_file import read_calibration
from triangulation_pipeline.cli import main
from triangulation_pipeline.formats.recording import recording_of, write_measurements
from triangulation_pipeline.model.checkpoint import write_checkpoint
from triangulation_pipeline.model.universal import universal_model
from triangulation_pipeline.network import NORTH_WEST_ITALY
from triangulation_pipeline.physics.dataset_spec import DatasetSpec
from triangulation_pipeline.physics.scenario import PRESETS, Preset, Scenario
from triangulation_pipeline.physics.simulator import simulate
from triangulation_pipeline_tests.conftest import ROOT
from triangulation_pipeline_tests.test_cli import COMMAND
from triangulation_pipeline_tests.test_documentation import blocks, printed

ITALY = ROOT / "docker" / "networks" / "north-west-italy.yaml"
BIAS_NS = np.array([150.0, -300.0, 80.0, 0.0, 420.0, -90.0, 40.0])
BIAS_NS -= BIAS_NS.mean()
HEADER = "transmission_id,time,receiver,toa_ns,toa_sigma_ns,rssi_dbm"


def triangulation(*arguments: str | Path, env: Mapping[str, str] | None = None) -> Result:
    runner = CliRunner(env={"COLUMNS": "120", **(env or {})})
    return runner.invoke(main, list(map(str, arguments)), catch_exceptions=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two recordings: one with a third of the places, to calibrate; one with all, to be compared with."""
    folder = tmp_path_factory.mktemp("recording")
    samples = simulate(DatasetSpec(NORTH_WEST_ITALY, Scenario(), 900, seed=11))
    late = replace(samples, toa_ns=np.where(samples.toa_present, samples.toa_ns + BIAS_NS, 0.0))
    write_measurements(recording_of(late, NORTH_WEST_ITALY, withhold=0.67), folder / "m.csv")
    write_measurements(recording_of(late, NORTH_WEST_ITALY), folder / "known.csv")
    done = triangulation("calibrate", folder / "m.csv", "--network", ITALY, "--out", folder / "c.yaml")
    assert done.exit_code == 0, done.output
    (folder / "shown.txt").write_text(done.stdout)
    return folder


def test_biases_are_found_within_what_is_told(folder: Path) -> None:
    found = read_calibration(folder / "c.yaml", NORTH_WEST_ITALY)
    assert (np.abs(found.toa_bias_ns - BIAS_NS) < 4 * found.toa_bias_sigma_ns).all()
    assert found.toa_bias_sigma_ns.max() < 5
    lines = (folder / "shown.txt").read_text().splitlines()
    assert " transmissions of known position, 2000-01-01 00:00:" in lines[0]
    assert [line.partition("  ")[0].strip() for line in lines[2:9]] == [site.name for site in NORTH_WEST_ITALY.sites]
    assert "written: " in lines[-1]


def test_what_a_program_reads_of_a_calibration(folder: Path) -> None:
    done = triangulation("calibrate", folder / "m.csv", "--network", ITALY, "--json")
    found = json.loads(done.stdout)
    assert found["sites"][1]["toa_bias_ns"] == pytest.approx(BIAS_NS[1], abs=20)
    assert found["transmissions"] > 200
    assert found["refused"] == []


def test_with_the_calibration_regions_hold_what_they_say(folder: Path) -> None:
    out = folder / "fixes.csv"
    done = triangulation(
        "locate", folder / "known.csv", "--network", ITALY, "--calibration", folder / "c.yaml", "--out", out
    )
    assert done.exit_code == 0, done.output
    assert "900 of 900 transmissions located" in done.stdout
    assert "not calibrated" not in done.stdout
    assert "(880 more; --out writes all)" in done.stdout
    last = next(line for line in done.stdout.splitlines() if "of known position" in line)
    inside = float(last.partition("regions of 50%, ")[2].partition("%")[0])
    assert 92 < inside < 97.5
    rows = list(csv.DictReader(out.open()))
    error_m = np.array([float(row["error_m"]) for row in rows])
    assert len(rows) == 900
    assert np.median(error_m) < 30


def test_a_stored_calibration(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is found by the network; and without one nothing else is taken."""
    monkeypatch.chdir(folder)
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    homeless = triangulation("calibrate", "m.csv", "--network", ITALY, "--store")
    assert homeless.output.startswith("Error: DAGSTER_HOME is not set and the current folder has no dagster.yaml; ")
    assert homeless.output.endswith(
        ": --store keeps the calibration in the project's database; --out keeps it in a file\n"
    )
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    by_stored = ("locate", "m.csv", "--network", ITALY, "--calibration", "stored")
    missing = triangulation(*by_stored)
    assert "Error: there is no database to find a calibration in: " in missing.output
    assert list(tmp_path.iterdir()) == []
    done = triangulation("calibrate", "m.csv", "--network", ITALY, "--store")
    assert done.exit_code == 0, done.output
    calibration_id = done.stdout.splitlines()[-1].removeprefix("stored: ")
    shown = {}
    for source in ("stored", f"stored/{calibration_id[:8]}", "c.yaml"):
        done = triangulation(*by_stored[:-1], source, "--json", "--out", "f.csv")
        assert done.exit_code == 0, done.output
        shown[source] = json.loads(done.stdout), Path("f.csv").read_text()
    summary, _ = shown["stored"]
    assert summary == shown[f"stored/{calibration_id[:8]}"][0]
    assert shown["stored"][1] == shown["c.yaml"][1]
    assert summary["calibration"]["source"] == f"stored/{calibration_id}"
    assert (summary["located"], summary["known"]["within_95"] > 0.9, summary["refused"]) == (900, True, [])
    assert summary["written"] == [str(folder / "f.csv")]

    other = tmp_path / "other.yaml"
    other.write_text(ITALY.read_text().replace("45.044", "45.045"))
    (tmp_path / "later.csv").write_text((folder / "m.csv").read_text().replace(",9466", ",9566"))
    done = triangulation("locate", "m.csv", "--network", other, "--calibration", "stored")
    assert done.output.startswith("Error: no calibration of the network north-west-italy (")
    done = triangulation("locate", tmp_path / "later.csv", "--network", ITALY, "--calibration", "c.yaml")
    assert "calibrated by c.yaml, whose last measurement was 116 d before the last transmission" in done.stdout
    # Last, because it changes to the folder of the project.
    assert f"stored/{calibration_id[:8]}  north-west-italy (491d2d57)  " in triangulation("calibrations").stdout


def test_without_a_calibration_regions_are_wider(folder: Path) -> None:
    widths = []
    for options in ((), ("--calibration", folder / "c.yaml")):
        out = folder / "some.csv"
        done = triangulation("locate", folder / "m.csv", "--network", ITALY, "--out", out, *options)
        assert done.exit_code == 0, done.output
        assert ("not calibrated: " in done.stdout) == (not options)
        widths.append(np.median([float(row["semi_major_95_m"]) for row in csv.DictReader(out.open())]))
    assert widths[0] > 2 * widths[1]


def test_silent_sites_and_islands_are_told(folder: Path, tmp_path: Path) -> None:
    rows = pd.read_csv(folder / "known.csv")
    names = [site.name for site in NORTH_WEST_ITALY.sites]
    first = pd.factorize(rows["transmission_id"])[0] < 500
    kept = np.where(first, rows["receiver"].isin(names[:4]), rows["receiver"].isin(names[4:6]))
    rows[kept].to_csv(tmp_path / "m.csv", index=False)
    done = triangulation("calibrate", tmp_path / "m.csv", "--network", ITALY)
    assert done.exit_code == 0, done.output
    assert f"heard none of them, so nothing is known: {names[6]}\n" in done.stdout
    assert f"so their biases have a sum of their own, 0: {names[4]}, {names[5]}\n" in done.stdout


def test_the_commands_of_the_page(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are run as they stand, with files of these names."""
    shutil.copy(folder / "m.csv", tmp_path / "measurements.csv")
    shutil.copy(ITALY, tmp_path / "network.yaml")
    monkeypatch.chdir(tmp_path)
    block, *_ = blocks("docs/locating.md", "bash")  # the others are benchmarks, and what test_locards.py runs
    for line in block.content.replace("\\\n", "").splitlines():
        assert triangulation(*shlex.split(line)[1:]).exit_code == 0
    assert {path.name for path in tmp_path.iterdir()} >= {"calibration.yaml", "fixes.csv", "map.html"}
    (example,) = blocks("docs/locating.md", "python")
    assert len(printed(example.content, {})) > 10


@pytest.mark.parametrize("ending", ["geojson", "kml"])
def test_files_of_fixes_and_the_map(ending: str, folder: Path) -> None:
    few = folder / "few.csv"
    few.write_text("".join((folder / "m.csv").open().readlines()[:60]))
    out, page = folder / f"f.{ending}", folder / "map.html"
    done = triangulation("locate", few, "--network", ITALY, "--out", out, "--map", page)
    assert done.exit_code == 0, done.output
    assert done.stdout.count("written: ") == 2
    first = next(csv.reader(few.open().readlines()[1:]))[0]
    assert first in out.read_text()
    assert first in page.read_text()


def test_a_data_frame_gives_what_the_command_writes(folder: Path) -> None:
    few, out = folder / "few.csv", folder / "f.csv"
    few.write_text("".join((folder / "m.csv").open().readlines()[:80]))
    assert triangulation("locate", few, "--network", ITALY, "--out", out).exit_code == 0
    frame, model = pd.read_csv(few), tp.load_model("universal")
    found = model.locate(frame.sample(frac=1, random_state=1), NORTH_WEST_ITALY).set_index("transmission_id")
    written = pd.read_csv(out).set_index("transmission_id")
    assert list(found.columns) == list(written.columns)
    for name in ("latitude", "longitude", "semi_major_95_m"):
        np.testing.assert_allclose(found[name].loc[written.index], written[name], atol=0.06, rtol=1e-6)
    with pytest.warns(UserWarning, match=r"refused rows: 1 \(1 because: no site of the network has"):
        model.locate(pd.concat([frame, frame.head(1).assign(receiver="Nowhere")]), NORTH_WEST_ITALY)
    with pytest.raises(ValueError, match="give locate the network of your receivers"):
        model.locate(frame)
    with pytest.raises(ValueError, match="every row was refused"):
        model.locate(frame.assign(receiver="Nowhere"), NORTH_WEST_ITALY)


def test_live_each_fix_is_printed_as_soon_as_the_next_transmission_begins(folder: Path) -> None:
    header, *rows = (folder / "m.csv").read_text().splitlines(keepends=True)
    ids = list(dict.fromkeys(row.partition(",")[0] for row in rows[:60]))
    first, second, third = ([row for row in rows if row.startswith(one)] for one in ids[:3])
    program = [*COMMAND, "locate", "-", "--network", str(ITALY), "--follow"]
    pipe = subprocess.PIPE
    process = subprocess.Popen(program, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    with process:
        process.stdin.write("".join([header, *first, second[0]]))
        process.stdin.flush()
        # The program still waits for more.
        assert json.loads(process.stdout.readline())["transmission_id"] == ids[0]
        process.stdin.write("".join([*second[1:], "garbage\n", *third]))
        process.stdin.close()
        found = [json.loads(line) for line in process.stdout]
        told = process.stderr.read().splitlines()
        assert told[0].startswith("refused: the line has another number of fields than the first (line ")
        assert told[1].startswith("refused 1 row: the line has another number of fields")
    assert process.returncode == 0
    assert [row["transmission_id"] for row in found] == ids[1:3]
    assert all(44 < row["latitude"] < 46 and row["semi_major_95_m"] > 5 for row in found)


HOSTILE = f"""{HEADER}
two,1764151200123456789,Torino,412310,50,-91.5
two,1764151200123456789,Genova,798745,50,-88.0
two,1764151200123456789,Coazze,431022,55,-104.3
two,1764151200123456789,Coazze,431099,55,-104.3
unknown,1764151201123456789,Nowhere,1,50,-90
absurd,1764151202123456789,Torino,1e30,50,-90
loud,1764151202123456789,Torino,5,50,9000
level,1764151203123456789,Torino,,,-80
far,1764151203123456789,Torino,0,0.001,-80
far,1764151203123456789,Genova,900000000,0.001,-80
far,1764151203123456789,Coazze,-900000000,0.001,-80
far,1764151203123456789,Montanaro,500000000,0.001,-173
garbage
"""


@pytest.mark.parametrize("ending", ["csv", "geojson", "kml"])
def test_what_cannot_be_right_is_told_and_the_rest_is_located(ending: str, tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text(HOSTILE)
    refused = tmp_path / "refused.csv"
    out = ("--out", tmp_path / f"f.{ending}", "--map", tmp_path / "map.html", "--refused", refused)
    done = triangulation("locate", tmp_path / "m.csv", "--network", ITALY, *out)
    assert done.exit_code == 0, done.output
    rows = sorted(csv.DictReader(refused.open()), key=lambda row: int(row["line"]))
    assert [(int(row["line"]), row["transmission_id"], row["column"], row["value"]) for row in rows] == [
        (4, "two", "receiver", "Coazze"),
        (5, "two", "receiver", "Coazze"),
        (6, "unknown", "receiver", "Nowhere"),
        (7, "absurd", "toa_ns", "1e30"),
        (8, "loud", "rssi_dbm", "9000"),
        (14, "", "", "garbage"),
    ]
    for sentence in (
        "refused 2 rows: two different rows of one receiver in one transmission (first in line 4, receiver 'Coazze')",
        "refused 1 row: no site of the network has this name (first in line 6, receiver 'Nowhere')",
        "refused 1 row: a level must be -174 to 50 dBm; ",
        "refused 1 row: the line has another number of fields than the first (first in line 14)",
        "no row is of Aquila di Giaveno, Passo dei Giovi, Milano-Baggio. This counts as having heard nothing: ",
        "few_times, 2: ",
        "early_arrival, 1: ",
        "3 of 3 transmissions located",
    ):
        assert sentence in done.stdout
    assert (tmp_path / f"f.{ending}").stat().st_size > 500


@pytest.mark.parametrize(("end", "exit_code"), [(KeyboardInterrupt, 130), (BrokenPipeError(EPIPE, "Broken pipe"), 1)])
def test_what_was_refused_is_kept_however_live_use_ends(
    end: BaseException, exit_code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "m.csv").write_text(HOSTILE)
    monkeypatch.setattr("triangulation_pipeline.cli.locate.rows_of", Mock(side_effect=end))
    monkeypatch.setattr("gc.freeze", Mock())
    refused = tmp_path / "refused.csv"
    done = triangulation("locate", tmp_path / "m.csv", "--network", ITALY, "--follow", "--refused", refused)
    assert done.exit_code == exit_code
    assert "refused 2 rows: two different rows of one receiver" in done.stderr
    assert "cannot be written" not in done.output
    assert [row["line"] for row in csv.DictReader(refused.open())][:2] == ["4", "5"]


@pytest.mark.parametrize("seed", range(3))
def test_damaged_rows_do_no_harm(seed: int, folder: Path, tmp_path: Path) -> None:
    """A third of the rows has a wrong value, is cut, is doubled, or has an absurd arrival time."""
    rng = np.random.default_rng(seed)
    header, *rows = (folder / "known.csv").read_text().splitlines()[:400]
    junk = ["nan", "inf", "1e308", "-1e308", "", '"', "\x00", "é", "9" * 40, "-0", "1e-320", "Torino", "180.1", "-999"]
    for at in np.flatnonzero(rng.random(len(rows)) < 0.33):
        cells = rows[at].split(",")
        kind = rng.integers(5)
        if kind == 0:
            cells[3:6] = [f"{rng.uniform(-1e9, 1e9):.3f}", str(rng.choice(["1e-9", "1e9", "0.001"])), "50"]
        elif kind < 3:
            cells[rng.integers(len(cells))] = str(rng.choice(junk))
        text = ",".join(cells)
        rows[at] = text[: rng.integers(len(text))] if kind == 3 else f"{text}\n{text}" if kind == 4 else text
    path = tmp_path / "damaged.csv"
    path.write_text("\n".join([header, *rows]))
    done = triangulation("locate", path, "--network", ITALY, "--out", tmp_path / f"f.{['geojson', 'kml', 'csv'][seed]}")
    assert done.exit_code == 0, done.output
    assert done.stdout.count("refused ") > 5
    done = triangulation("calibrate", path, "--network", ITALY, "--json")
    assert done.exit_code == 0, done.output
    for site, bias_ns in zip(json.loads(done.stdout)["sites"], BIAS_NS, strict=True):
        assert abs(site["toa_bias_ns"] - bias_ns) < 5 * site["toa_bias_sigma_ns"] + 5
        assert abs(site["gain_offset_db"]) < 8


def test_where_nothing_is_left_nothing_is_written(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text(f"{HEADER}\na,1764151200123456789,Nowhere,1,50,-90\n")
    refused = tmp_path / "refused.csv"
    for command, sentence in (("locate", "there is nothing to locate"), ("calibrate", "a calibration needs")):
        files = ("--out", tmp_path / "f.csv", "--refused", refused)
        done = triangulation(command, tmp_path / "m.csv", "--network", ITALY, *files)
        assert done.exit_code == 1
        assert f"Error: {sentence}" in done.output
        assert "refused 1 row: no site of the network has this name" in done.output
        assert "no site of the network has this name" in refused.read_text()
        refused.unlink()
        assert [path.name for path in tmp_path.iterdir()] == ["m.csv"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--map", "f.kml"], "--map: the name must end in .html, got f.kml"),
        (["--out", "f.txt"], "--out: the name must end in .csv, .geojson, .kml, got f.txt"),
        (["--out", "/none/f.csv"], "/none/f.csv cannot be written: its folder does not exist"),
        (["--map", "/none/f.html"], "/none/f.html cannot be written: its folder does not exist"),
        (["--refused", "/dev/null"], "/dev/null cannot be written: it is not a regular file"),
        (["--out", "f.csv", "--refused", "f.csv"], "--refused: f.csv cannot be written: --out writes it"),
        (["--refused", str(ITALY)], "north-west-italy.yaml cannot be written: the command reads it"),
        (["--calibration", "/none"], "calibration /none does not exist"),
        (["--mapping", "/none"], "mapping file /none does not exist"),
        (["--set", "frequency_mhz=lots"], "scenario: frequency_mhz: "),
        (["--model", "a:b:c"], "a model must be universal, name, name/version as in rf-triangulation/3"),
        (["--model", "/none.pth"], "model /none.pth cannot be read: No such file or directory"),
        (["--model", "some/3"], "there is no database to find the model 'some/3' in: "),
    ],
)
def test_mistakes_are_found_before_any_work(options: list[str], sentence: str, folder: Path, tmp_path: Path) -> None:
    home = {"DAGSTER_HOME": str(tmp_path), "TRIANGULATION_DATABASE_URL": f"sqlite:///{tmp_path}/none.db"}
    done = triangulation("locate", folder / "m.csv", "--network", ITALY, *options, env=home)
    assert done.exit_code == 1
    assert sentence in done.output
    assert done.output.startswith("Error: ")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_not_there_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("triangulation_pipeline.models.load_model", lambda reference: pytest.fail("too late"))
    for command in ("locate", "calibrate"):
        done = triangulation(command, "/none.csv", "--network", ITALY)
        assert done.exit_code == 1
        assert done.output == "Error: /none.csv does not exist\n"


def test_a_model_of_a_file_is_the_same_model(folder: Path, tmp_path: Path) -> None:
    few = tmp_path / "few.csv"
    few.write_text("".join((folder / "m.csv").open().readlines()[:40]))
    (tmp_path / "own.pth").write_bytes(write_checkpoint(universal_model()))
    shown = [
        triangulation("locate", few, "--network", ITALY, "--model", model).stdout
        for model in ("universal", tmp_path / "own.pth")
    ]
    assert shown[0] == shown[1] != ""


def test_the_conditions_of_a_model_hold_unless_the_command_names_others(folder: Path, tmp_path: Path) -> None:
    few, universal = tmp_path / "few.csv", universal_model()
    few.write_text("".join((folder / "m.csv").open().readlines()[:40]))
    own = {"network": NORTH_WEST_ITALY, "scenario": PRESETS[Preset.valley]}
    checkpoint = replace(universal, spec=universal.spec.model_copy(update=own))
    (tmp_path / "own.pth").write_bytes(write_checkpoint(checkpoint))

    def shown(*options: str) -> str:
        done = triangulation("locate", few, "--network", ITALY, *options)
        assert done.exit_code == 0, done.output
        return done.stdout

    changed, model = ("--set", "nlos_probability=0.3"), ("--model", str(tmp_path / "own.pth"))
    assert shown(*model) == shown("--preset", "valley") != shown()
    assert shown(*model, *changed) == shown("--preset", "valley", *changed) != shown(*model)
    assert shown(*model, "--preset", "default") == shown()
