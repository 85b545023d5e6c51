import io
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import chi2

from triangulation_pipeline.formats.fixes import COLUMNS, FLAGS, RECEIVER_COLUMNS, Fixes, fixes_of, write_csv
from triangulation_pipeline.frame import haversine_m
from triangulation_pipeline.physics.constants import SPEED_OF_LIGHT_M_PER_NS
from triangulation_pipeline.physics.geometry import Geometry
from triangulation_pipeline.positions.mixtures import MixturePositions
from triangulation_pipeline_tests.conftest import ROOT
from triangulation_pipeline_tests.formats.fixed import EAST, HOSTILE, LAYOUT, fixes, mixture, samples

NETWORK = LAYOUT.network


def test_the_table_has_the_columns_that_are_documented() -> None:
    receivers = [f"{site.name}.{name}" for site in NETWORK.sites for name in RECEIVER_COLUMNS]
    assert list(fixes().table) == [*COLUMNS, *receivers]


def test_the_place_is_the_peak_of_the_most_probable_solution() -> None:
    """Also where a narrow peak of little probability is the highest."""
    measured = samples()
    truth_m = measured.tx_en_m(NETWORK.frame)
    centre_m = np.stack([truth_m, truth_m + 5000 * EAST], axis=1)
    found = fixes_of(mixture([0.8, 0.2], centre_m, [80.0, 5.0]), LAYOUT, measured, [""] * 40).table
    lat, lon = NETWORK.frame.geodetic(truth_m, measured.tx_altitude_m)
    assert haversine_m(found["latitude"], found["longitude"], lat, lon).max() < 0.1
    np.testing.assert_allclose(found["probability"], 0.8)
    np.testing.assert_allclose(found["alternative_1.probability"], 0.2)
    lat, lon = NETWORK.frame.geodetic(truth_m + 5000 * EAST, measured.tx_altitude_m)
    assert haversine_m(found["alternative_1.latitude"], found["alternative_1.longitude"], lat, lon).max() < 0.1
    assert found["alternative_2.probability"].isna().all()
    lat, lon = NETWORK.frame.geodetic(truth_m + 1000 * EAST, measured.tx_altitude_m)
    assert haversine_m(found["mean_latitude"], found["mean_longitude"], lat, lon).max() < 0.1


def test_ellipses_of_one_component_are_exact() -> None:
    measured = samples()
    centre_m = measured.tx_en_m(NETWORK.frame)[:, None]
    turn = np.radians(30)  # from north to east
    axes = np.array([[np.sin(turn), np.cos(turn)], [np.cos(turn), -np.sin(turn)]])
    scale_m2 = np.tile(axes.T @ np.diag([200.0**2, 50.0**2]) @ axes, (40, 1, 1, 1))
    for freedom in (np.inf, 3.0):
        positions = MixturePositions.of_components(np.zeros((40, 1)), centre_m, scale_m2, np.full((40, 1), freedom))
        found = fixes_of(positions, LAYOUT, measured, [""] * 40).table
        np.testing.assert_allclose(found["orientation_deg"], 30)
        for percent, level in ((50, 0.5), (95, 0.95)):
            squared = chi2(2).ppf(level) if np.isinf(freedom) else freedom * ((1 - level) ** (-2 / freedom) - 1)
            np.testing.assert_allclose(found[f"semi_major_{percent}_m"], 200 * np.sqrt(squared), rtol=2e-3)
            np.testing.assert_allclose(found[f"semi_minor_{percent}_m"], 50 * np.sqrt(squared), rtol=2e-3)


def test_ellipses_of_components_of_different_sizes_hold_what_they_say() -> None:
    measured, rng = samples(), np.random.default_rng(0)
    truth_m = measured.tx_en_m(NETWORK.frame)
    centre_m = truth_m[:, None] + [[0, 0], [20, 0], [0, 30]]
    positions = mixture([0.6, 0.3, 0.1], centre_m, [30.0, 90.0, 60.0], freedom=4.0)
    found = fixes_of(positions, LAYOUT, measured, [""] * 40).table.iloc[0]
    which = rng.choice(3, 100_000, p=[0.6, 0.3, 0.1])
    stretch = np.array([30.0, 90.0, 60.0])[which] * np.sqrt(4 / rng.chisquare(4, len(which)))
    off_m = (centre_m[0, which] - positions.en_m[0]) + rng.normal(size=(len(which), 2)) * stretch[:, None]
    turn = np.radians(found["orientation_deg"])
    along, across = off_m @ [np.sin(turn), np.cos(turn)], off_m @ [np.cos(turn), -np.sin(turn)]
    for percent in (50, 95):
        squared = (along / found[f"semi_major_{percent}_m"]) ** 2 + (across / found[f"semi_minor_{percent}_m"]) ** 2
        assert (squared <= 1).mean() == pytest.approx(percent / 100, abs=0.01)


def test_a_delayed_arrival_has_no_weight_and_its_delay_as_residual() -> None:
    measured = samples()
    truth_m = measured.tx_en_m(NETWORK.frame)
    flight_ns = Geometry(NETWORK, measured.tx_altitude_m).ranges_m(truth_m)[0] / SPEED_OF_LIGHT_M_PER_NS
    emitted_ns = np.random.default_rng(0).uniform(0, 1e6, (40, 1))
    timed = measured.toa_present
    toa_ns = np.where(timed, emitted_ns + flight_ns, 0.0)
    late = timed.argmax(1)
    toa_ns[np.arange(40), late] += 3000.0
    exact = replace(measured, toa_ns=toa_ns)
    positions = mixture([1.0], truth_m[:, None], [50.0])
    found = fixes_of(positions, LAYOUT, exact, [""] * 40).table
    weight = found[[f"{site.name}.weight" for site in NETWORK.sites]].to_numpy()
    residual_ns = found[[f"{site.name}.residual_ns" for site in NETWORK.sites]].to_numpy()
    np.testing.assert_array_equal(np.isnan(weight), ~timed)
    np.testing.assert_array_equal(np.isnan(residual_ns), ~timed)
    many = timed.sum(1) >= 5  # with few, which one is late is less sure
    assert many.sum() > 20
    assert (weight[many, late[many]] < 1e-6).all()
    np.testing.assert_allclose(residual_ns[many, late[many]], 3000, atol=40)
    others = timed & (np.arange(7) != late[:, None])
    assert (weight[others & many[:, None]] > 0.9).all()
    assert np.abs(residual_ns[others & many[:, None]]).max() < 40


def test_each_flag_has_its_reason() -> None:
    measured = samples(40)
    truth_m = measured.tx_en_m(NETWORK.frame)
    flight_ns = Geometry(NETWORK, measured.tx_altitude_m).ranges_m(truth_m)[0] / SPEED_OF_LIGHT_M_PER_NS
    timed, toa_ns = measured.toa_present.copy(), np.where(measured.toa_present, flight_ns, 0.0)
    timed[1, 2:], toa_ns[1, 2:] = False, 0.0
    site = int(timed[4].argmax())
    toa_ns[4, site] -= 5000.0
    centre_m = np.stack([truth_m, truth_m + 6000 * EAST], axis=1)
    centre_m[2] = 2e6
    log_weight = np.tile([0.0, -np.inf], (40, 1))
    log_weight[0] = -np.inf
    log_weight[3] = np.log([0.8, 0.2])
    scale_m2 = np.tile(50.0**2 * np.eye(2), (40, 2, 1, 1))
    positions = MixturePositions.of_components(log_weight, centre_m, scale_m2, np.full((40, 2), 5.0))
    found = fixes_of(positions, LAYOUT, replace(measured, toa_present=timed, toa_ns=toa_ns), [""] * 40).table["flags"]
    assert found[0] == "no_position"
    assert found[1].startswith("few_times")
    assert "outside_area" in found[2].split("; ")
    assert found[3] == "ambiguous"
    assert found[4] == "early_arrival; unlike_training"
    assert (found[5:] == "").all()
    assert {flag for flags in found for flag in flags.split("; ") if flag} == set(FLAGS)


def test_truths_and_errors_stand_where_they_are_known() -> None:
    table = fixes().table
    known = np.arange(40) != 1
    located = np.arange(40) != 2
    np.testing.assert_array_equal(table["true_latitude"].notna(), known)
    np.testing.assert_array_equal(table["error_m"].notna(), known & located)
    np.testing.assert_allclose(table["error_m"][known & located], 30, rtol=0.01)
    assert table.loc[2, ["latitude", "probability", "semi_major_95_m", "hdop"]].isna().all()
    assert table["time"][7] == pd.Timestamp(table["time_ns"][7], unit="ns").strftime("%Y-%m-%dT%H:%M:%S.%f") + "000Z"


def test_receivers_are_named_as_they_heard() -> None:
    heard = samples().signal_present
    for row, names in enumerate(fixes().table["receivers"]):
        assert names.split("; ") == [site.name for site, here in zip(NETWORK.sites, heard[row], strict=True) if here]


def test_csv_comes_back_as_it_was_whatever_names_hold() -> None:
    whole = fixes(transmission_id=[HOSTILE, 'a,"b"\nc', "=1+1", "Ωμέγα", *map(str, range(36))])
    file = io.BytesIO()
    write_csv(file, NETWORK, [whole.take(slice(0, 15)), whole.take(slice(15, None))])
    read = pd.read_csv(
        io.BytesIO(file.getvalue()), keep_default_na=False, na_values=[""], dtype={"transmission_id": str}
    )
    assert list(read) == list(whole.table)
    assert read["transmission_id"].tolist() == whole.table["transmission_id"].tolist()
    np.testing.assert_array_equal(read["time_ns"], whole.table["time_ns"])
    apart_m = haversine_m(read["latitude"], read["longitude"], whole.table["latitude"], whole.table["longitude"])
    assert apart_m.max() < 0.01
    np.testing.assert_allclose(read["error_m"], whole.table["error_m"], atol=0.051)
    np.testing.assert_allclose(read["Torino.weight"], whole.table["Torino.weight"], atol=5.1e-5)


def test_csv_of_nothing_is_a_header() -> None:
    file = io.BytesIO()
    write_csv(file, NETWORK, [])
    assert list(pd.read_csv(io.BytesIO(file.getvalue()))) == list(fixes().table)


def test_other_numbers_of_rows_are_refused() -> None:
    positions = fixes().positions
    with pytest.raises(ValueError, match="transmission_id must have 40 rows, as many as positions; it has 3"):
        fixes_of(positions, LAYOUT, samples(), ["a", "b", "c"])
    with pytest.raises(ValueError, match="measurements must have 40 rows"):
        fixes_of(positions, LAYOUT, samples().take(slice(0, 5)), [""] * 40)


def test_no_rows_have_no_fixes() -> None:
    nothing = fixes_of(fixes().positions.take(slice(0, 0)), LAYOUT, samples().take(slice(0, 0)), [])
    assert isinstance(nothing, Fixes)
    assert len(nothing) == 0
    assert list(nothing.table) == list(fixes().table)


def test_the_page_of_the_documentation_names_every_column_and_flag() -> None:
    page = (ROOT / "docs" / "fixes.md").read_text()
    rows = [line.split("|")[1:-1] for line in page.splitlines() if line.startswith("| `")]
    named = {name: text.strip() for names, text, *_ in rows for name in re.findall(r"`([^`]+)`", names)}
    assert {*COLUMNS, *RECEIVER_COLUMNS, *FLAGS} <= named.keys()
    assert {flag: named[flag] for flag in FLAGS} == FLAGS
