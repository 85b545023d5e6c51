"""Signals in air."""

import numpy as np
import pytest
from scipy.integrate import quad

from triangulation_pipeline.calibration import calibrated, estimate_calibration
from triangulation_pipeline.network import NORTH_WEST_ITALY
from triangulation_pipeline.physics.dataset_spec import DatasetSpec
from triangulation_pipeline.physics.layout import Layout
from triangulation_pipeline.physics.refraction import SCALE_HEIGHT_M, mean_refractivity_ppm, slowing
from triangulation_pipeline.physics.scenario import Scenario
from triangulation_pipeline.physics.simulator import simulate

AIR = Scenario(refractivity_ppm=315.0)


@pytest.mark.parametrize(
    ("low_m", "high_m"), [(0.0, 10e3), (12e3, 300.0), (500.0, 501.0), (500.0, 500.0), (-400.0, 0.1)]
)
def test_the_mean_is_the_integral_along_the_path(low_m: float, high_m: float) -> None:
    along, _ = quad(lambda share: 315 * np.exp(-(low_m + share * (high_m - low_m)) / SCALE_HEIGHT_M), 0, 1)
    assert float(mean_refractivity_ppm(315, np.array(low_m), high_m)) == pytest.approx(along, rel=1e-9)


def test_air_delays_what_the_simulator_sends_and_calibration_takes_it_off() -> None:
    vacuum, air = (simulate(DatasetSpec(NORTH_WEST_ITALY, scenario, 500, 0)) for scenario in (Scenario(), AIR))
    layout = Layout(NORTH_WEST_ITALY, AIR)
    flight_ns = NORTH_WEST_ITALY.service_area(AIR.area_margin_m).diagonal_m / 0.299792458
    late_ns = (air.toa_ns - vacuum.toa_ns)[air.toa_present]
    assert 0 < late_ns.min() < late_ns.max() < 315e-6 * flight_ns
    assert late_ns.max() > 100
    apart_ns = calibrated(layout, air).toa_ns - vacuum.toa_ns
    apart_ns -= np.where(air.toa_present, apart_ns, np.nan)[:, :1]
    assert np.nanmax(np.abs(apart_ns[air.toa_present & air.toa_present[:, :1]])) < 1
    found, plain = (
        estimate_calibration(Layout(NORTH_WEST_ITALY, one.scenario), rows, rows.tx_lat, rows.tx_lon)
        for one, rows in ((layout, air), (Layout(NORTH_WEST_ITALY, Scenario()), vacuum))
    )
    np.testing.assert_allclose(found.toa_bias_ns, plain.toa_bias_ns, atol=0.1)


def test_left_out_it_is_vacuum_and_older_datasets_keep_their_identity() -> None:
    assert (slowing(Layout(NORTH_WEST_ITALY, Scenario()), np.array([2.0, 10e3])) == 0).all()
    plain, air = (DatasetSpec(NORTH_WEST_ITALY, scenario, 10, 0) for scenario in (Scenario(), AIR))
    assert "refractivity_ppm" not in str(plain.description())
    assert plain.dataset_id != air.dataset_id
