"""Calibrations of the database."""

import json
from dataclasses import fields, replace

import numpy as np
import pytest
from sqlalchemy import Engine

from triangulation_pipeline.calibration import SiteCalibration
from triangulation_pipeline.network import NORTH_WEST_ITALY, ReceiverNetwork
from triangulation_pipeline.storage.calibrations import find_calibration, store_calibration
from triangulation_pipeline.storage.errors import StorageError
from triangulation_pipeline.storage.views import calibration_overview, read_view
from triangulation_pipeline_tests.test_calibration_file import KNOWN

SITES = NORTH_WEST_ITALY.sites
RENAMED = ReceiverNetwork(name="another name", sites=SITES)
REVERSED = ReceiverNetwork(name="other", sites=tuple(reversed(SITES)))


def test_what_is_stored_is_found_again(engine: Engine) -> None:
    """The newest of the network, whatever its name; or one by its id, for any network that has its sites."""
    first = store_calibration(engine, replace(KNOWN, from_ns=None, to_ns=None), NORTH_WEST_ITALY)
    second = store_calibration(engine, KNOWN, RENAMED)
    newest = find_calibration(engine, NORTH_WEST_ITALY)
    assert newest.id == second
    expected = replace(KNOWN, toa_bias_ns=np.where(np.isinf(KNOWN.toa_bias_sigma_ns), 0, KNOWN.toa_bias_ns))
    for field in fields(SiteCalibration):
        np.testing.assert_allclose(
            getattr(newest.calibration, field.name), getattr(expected, field.name), atol=6e-4, err_msg=field.name
        )
    older = find_calibration(engine, REVERSED, first[:13].upper())
    assert (older.id, older.calibration.from_ns) == (first, None)
    np.testing.assert_allclose(older.calibration.gain_offset_db, expected.gain_offset_db[::-1], atol=6e-4)

    rows = read_view(engine, calibration_overview)
    assert [row["calibration_id"] for row in rows] == [second] * 7 + [first] * 7
    assert rows == json.loads(json.dumps(rows, allow_nan=False))
    groups = {row["site"]: row["site_group"] for row in rows if row["calibration_id"] == first}
    assert groups == {site.name: group for site, group in zip(SITES, KNOWN.group, strict=True)}
    turin = next(row for row in rows if row["site"] == "Torino")
    assert (turin["network_name"], turin["num_rows"], turin["to_ns"]) == ("another name", 2, KNOWN.to_ns)
    assert (turin["toa_bias_ns"], turin["toa_bias_sigma_ns"], turin["drift_ns_per_s"]) == (-9.75, 3.0, None)


def test_without_one_nothing_else_is_taken(engine: Engine) -> None:
    stored = [store_calibration(engine, KNOWN, NORTH_WEST_ITALY) for _ in range(2)]
    with pytest.raises(StorageError, match=r"^no calibration of the network other \(.{8}\) is stored; `triang"):
        find_calibration(engine, REVERSED)
    for sought in ("%", "nothing"):
        with pytest.raises(StorageError, match=f"^no calibration whose id begins with '{sought}' is stored; "):
            find_calibration(engine, NORTH_WEST_ITALY, sought)
    with pytest.raises(StorageError, match=r"^2 calibrations have ids that begin with '': "):
        find_calibration(engine, NORTH_WEST_ITALY, "")
    moved = (SITES[0].model_copy(update={"lat": 45.3}), *SITES[1:])
    with pytest.raises(ValueError, match=rf"^calibration {stored[0]}: the site 'Aquila di Giaveno' stands 31,"):
        find_calibration(engine, ReceiverNetwork(name="moved", sites=moved), stored[0])
