"""The file of a calibration."""

import json
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from triangulation_pipeline.calibration import SiteCalibration
from triangulation_pipeline.calibration_file import read_calibration, write_calibration
from triangulation_pipeline.network import NORTH_WEST_ITALY, ReceiverNetwork

SITES = NORTH_WEST_ITALY.sites
KNOWN = replace(
    SiteCalibration.of_network(NORTH_WEST_ITALY),
    toa_bias_ns=np.arange(7) * 10.125 - 30,
    toa_bias_sigma_ns=np.array([1.5, 2, 3, 4, 5, 6, np.inf]),
    toa_sigma_factor=np.linspace(0.5, 2, 7),
    toa_sigma_factor_sigma=np.full(7, 0.05),
    drift_sigma_ns_per_s=np.full(7, np.inf),
    gain_offset_db=np.linspace(-3, 3, 7),
    group=np.array([0, 0, 1, 0, 1, 0, 0]),
    rows=np.arange(7),
    from_ns=1764151200123456789,
    to_ns=1764154800123456789,
)


@pytest.mark.parametrize("name", ["c.yaml", "c.json"])
def test_what_is_written_is_read_back(name: str, tmp_path: Path) -> None:
    write_calibration(KNOWN, NORTH_WEST_ITALY, tmp_path / name)
    found = read_calibration(tmp_path / name, NORTH_WEST_ITALY)
    expected = replace(KNOWN, toa_bias_ns=np.where(np.isinf(KNOWN.toa_bias_sigma_ns), 0, KNOWN.toa_bias_ns))
    for field in fields(SiteCalibration):
        np.testing.assert_allclose(
            getattr(found, field.name), getattr(expected, field.name), atol=6e-4, err_msg=field.name
        )
    assert found.from_ns == KNOWN.from_ns
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_sites_are_known_by_name(tmp_path: Path) -> None:
    """The order may change, and a site may be new: nothing is known of its clock."""
    write_calibration(KNOWN, NORTH_WEST_ITALY, tmp_path / "c.yaml")
    new = SITES[0].model_copy(update={"name": "new", "lat": 45.3, "gain_offset_db": 2.5})
    network = ReceiverNetwork(name="other order", sites=(new, *reversed(SITES)))
    found = read_calibration(tmp_path / "c.yaml", network)
    np.testing.assert_allclose(found.toa_bias_ns[2:], KNOWN.toa_bias_ns[::-1][1:], atol=1e-3)
    assert np.isinf(found.toa_bias_sigma_ns[:2]).all()
    assert found.gain_offset_db[0] == 2.5


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"name": "Roma"}, "the network 'north-west-italy' has no site 'Roma': it is the calibration of another one"),
        ({"name": "Torino", "lat": 45.044, "lon": 7.672, "altitude_m": 250}, "the site 'Torino' is written twice"),
        ({"lat": 45.03}, "the site 'Aquila di Giaveno' stands 1,111 m from where it was calibrated; calibrate again"),
        ({"toa_bias_ns": "late"}, "sites.0.toa_bias_ns: Input should be a valid number"),
        ({"toa_bias_ns": None}, "toa_bias_ns and toa_bias_sigma_ns go together: give both, or neither"),
        ({"toa_bias_sigma_ns": -1}, "sites.0.toa_bias_sigma_ns: Input should be greater than or equal to 0"),
        ({"toa_sigma_factor": 0}, "sites.0.toa_sigma_factor: Input should be greater than or equal to 0.01"),
        ({"gain": 1}, "sites.0.gain: this key is not known"),
    ],
)
def test_a_file_that_cannot_be_right_is_refused(change: dict[str, object], sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    write_calibration(KNOWN, NORTH_WEST_ITALY, path)
    document = json.loads(path.read_text())
    document["sites"][0] |= change
    path.write_text(json.dumps(document))
    with pytest.raises(ValueError, match=r"c\.json: ") as caught:
        read_calibration(path, NORTH_WEST_ITALY)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@given(st.text(max_size=60))
def test_no_text_does_more_than_be_refused(text: str) -> None:
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        for name in ("c.yaml", "c.json"):
            path = Path(folder) / name
            path.write_bytes(text.encode())
            with pytest.raises(ValueError, match="calibration "):
                read_calibration(path, NORTH_WEST_ITALY)


def test_a_file_that_is_not_there_or_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^calibration .*none\.yaml does not exist$"):
        read_calibration(tmp_path / "none.yaml", NORTH_WEST_ITALY)
    with pytest.raises(ValueError, match=r"c\.yaml cannot be written: No such file or directory$"):
        write_calibration(KNOWN, NORTH_WEST_ITALY, tmp_path / "none" / "c.yaml")
