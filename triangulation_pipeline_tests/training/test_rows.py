from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from triangulation_pipeline.calibration import SiteCalibration
from triangulation_pipeline.frame import haversine_m
from triangulation_pipeline.model.architectures import build_locator
from triangulation_pipeline.model.locator import Locator
from triangulation_pipeline.model.spec import Architecture
from triangulation_pipeline.network import NORTH_WEST_ITALY
from triangulation_pipeline.physics.dataset_spec import DatasetSpec
from triangulation_pipeline.training import rows as rows_module
from triangulation_pipeline.training.config import TrainingConfig
from triangulation_pipeline.training.rows import PreparedRows, batches

from .conftest import DEFAULT, FEW, own, random, splits

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model() -> Locator:
    return build_locator(TrainingConfig(model_architecture=Architecture.regression).locator_spec(own(FEW)))


def test_rows_of_each_layout_stand_together_with_their_truth_in_its_frame(model: Locator) -> None:
    dataset = random()
    train, _ = splits(dataset)
    mixed = train.take(np.random.default_rng(0).permutation(len(train)))
    rows = PreparedRows.of(model, dataset, mixed, CPU)
    assert (len(rows), len(rows.inputs)) == (len(train), len(train))
    assert [part.start for _, part in rows.layouts] == [0, *(part.stop for _, part in rows.layouts[:-1])]
    assert len({layout.network.name for layout, _ in rows.layouts}) == len(rows.layouts) == 3
    for layout, part in rows.layouts:
        lat, lon = layout.network.frame.geodetic(rows.target_m_B2[part].double().numpy(), rows.tx_altitude_m[part])
        assert haversine_m(lat, lon, rows.tx_lat[part], rows.tx_lon[part]).max() < 0.1
        reach_m = 2 * np.hypot(*np.ptp(layout.network.site_enu_m[:, :2], axis=0))
        assert rows.target_m_B2[part].abs().max() < reach_m + 1e5
    # Each row has its own metrics.
    names = ("tx_lat", "tx_lon", "tx_altitude_m", "gdop", "crlb_m")
    mine, theirs = (np.stack([getattr(part, name) for name in names], axis=1) for part in (rows, train))
    np.testing.assert_array_equal(mine[mine[:, 0].argsort()], theirs[theirs[:, 0].argsort()])


def test_errors_are_metres_from_the_truth_in_any_frame(model: Locator) -> None:
    dataset = random()
    rows = PreparedRows.of(model, dataset, splits(dataset)[1], CPU)
    truth_m = rows.target_m_B2.double().numpy()
    assert rows.error_m(truth_m).max() < 0.1
    assert rows.error_m(truth_m + np.array([300.0, 400.0])) == pytest.approx(500, rel=0.02)
    # Early in a training the mean of a wide component may lie beyond the earth.
    assert rows.error_m(truth_m + np.array([3e7, 4e7])) == pytest.approx(5e7)
    assert np.isnan(rows.error_m(np.full_like(truth_m, np.nan))).all()


def test_rows_are_those_of_one_after_the_other_whatever_is_prepared_at_once(
    model: Locator, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = own(FEW)
    _, val = splits(dataset)
    whole = PreparedRows.of(model, dataset, val, CPU)
    monkeypatch.setattr(rows_module, "PREPARED_AT_ONCE", 40)
    parts = PreparedRows.of(model, dataset, val, CPU)
    assert [part for _, part in parts.layouts] == [slice(0, len(val))]
    for field in fields(whole.inputs):
        torch.testing.assert_close(getattr(parts.inputs, field.name), getattr(whole.inputs, field.name))
    assert torch.equal(parts.target_m_B2, whole.target_m_B2)
    np.testing.assert_array_equal(parts.tx_lat, val.tx_lat)


def test_the_gains_of_the_network_file_are_taken_off(model: Locator) -> None:
    """The same transmissions, where the file says that each receiver shows 3 dB too much, and where they do."""
    sites = tuple(site.model_copy(update={"gain_offset_db": 3.0}) for site in NORTH_WEST_ITALY.sites)
    network = NORTH_WEST_ITALY.model_copy(update={"sites": sites})
    _, val = splits(own(FEW))
    louder = replace(val, power_dbm=val.power_dbm + np.float32(3))
    plain = PreparedRows.of(model, own(FEW), val, CPU)
    calibrated = PreparedRows.of(model, DatasetSpec(network, DEFAULT, FEW, seed=0), louder, CPU)
    for field in fields(plain.inputs):
        torch.testing.assert_close(
            getattr(calibrated.inputs, field.name), getattr(plain.inputs, field.name), rtol=1e-4, atol=1e-3
        )
    assert (SiteCalibration.of_network(network).gain_offset_db == 3).all()


def test_a_batch_is_as_wide_as_its_widest_row(model: Locator) -> None:
    dataset = random()
    rows = PreparedRows.of(model, dataset, splits(dataset)[0], CPU)
    hearing = rows.inputs.num_hearing_B
    few = torch.nonzero(hearing <= hearing.min() + 1)[:, 0]
    inputs, target_m = rows.batch(few)
    assert inputs.hears_BW.shape == (len(few), int(hearing[few].max()))
    assert inputs.hears_BW.shape[1] < rows.inputs.hears_BW.shape[1]
    assert torch.equal(target_m, rows.target_m_B2[few])
    assert torch.equal(inputs.num_hearing_B, hearing[few])


def test_batches_hold_every_row_once_and_little_padding() -> None:
    hearing = torch.from_numpy(np.random.default_rng(0).integers(3, 16, 1000))
    parts = batches(hearing, 64, torch.Generator().manual_seed(0))
    assert sorted(map(len, parts)) == [1000 - 15 * 64, *[64] * 15]
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(1000))
    padding = sum(int((hearing[part].max() - hearing[part]).sum()) for part in parts)
    assert padding < 0.05 * int(hearing.sum())
    # Neither the batches nor the rows of a batch stand in the order of the receivers.
    widths = [float(hearing[part].double().mean()) for part in parts]
    assert widths != sorted(widths)
    # Rows of equal width meet others in the next epoch.
    equal = torch.full((1000,), 7)
    generator = torch.Generator().manual_seed(0)
    first, second = (batches(equal, 64, generator) for _ in range(2))
    assert len({frozenset(part.tolist()) for part in first + second}) == 32
    again = batches(equal, 64, torch.Generator().manual_seed(0))
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
