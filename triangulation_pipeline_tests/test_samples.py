import uuid
from dataclasses import fields, replace

import numpy as np
import pytest

from triangulation_pipeline.network import NORTH_WEST_ITALY
from triangulation_pipeline.physics.scenario import PRESETS, Preset
from triangulation_pipeline.physics.simulator import DatasetSpec, simulate_chunk
from triangulation_pipeline.samples import SampleBatch, Split, sample_ids, samples_digest, split_of

NAMESPACE = uuid.UUID(int=7)


@pytest.fixture(scope="module")
def batch() -> SampleBatch:
    spec = DatasetSpec(NORTH_WEST_ITALY, PRESETS[Preset.valley], 500, 0)
    return SampleBatch.concatenate([simulate_chunk(spec, 0).batch] * 17)


def test_wrong_columns_are_refused(batch: SampleBatch) -> None:
    with pytest.raises(ValueError, match=r"toa_sigma_ns must be <f4 \(8500, 7\), is <f8"):
        replace(batch, toa_sigma_ns=batch.toa_sigma_ns.astype(np.float64))
    with pytest.raises(ValueError, match=r"tx_lat must be <f8 \(8500,\), is <f8 \(8499,\)"):
        replace(batch, tx_lat=batch.tx_lat[1:])
    with pytest.raises(ValueError, match="snr_db must be"):
        replace(batch, snr_db=batch.snr_db[:, :6])
    with pytest.raises(ValueError, match="tx_lon must be <f8"):
        replace(batch, tx_lon=batch.tx_lon.astype(">f8"))


def test_take_and_concatenate_are_inverse(batch: SampleBatch) -> None:
    odd = batch.sample_index % 2 == 1
    joined = SampleBatch.concatenate([batch.take(odd), batch.take(~odd)])
    order = np.argsort(np.concatenate([np.flatnonzero(odd), np.flatnonzero(~odd)]))
    for field in fields(batch):
        np.testing.assert_array_equal(getattr(joined.take(order), field.name), getattr(batch, field.name))
    assert len(batch.take(slice(0, 0))) == 0


def test_ids_are_version_5_uuids() -> None:
    indices = [0, 1, 9, 10, 123_456_789]
    ids = sample_ids(NAMESPACE, indices)
    assert [uuid.UUID(bytes=row.tobytes()) for row in ids] == [uuid.uuid5(NAMESPACE, str(i)) for i in indices]


def test_split_shares_and_stability() -> None:
    ids = sample_ids(NAMESPACE, range(40_000))
    split = split_of(ids)
    shares = np.bincount(split, minlength=3) / len(ids)
    # Three standard deviations of a binomial share are below 0.007.
    assert shares[Split.train] == pytest.approx(0.70, abs=0.007)
    assert shares[Split.val] == pytest.approx(0.15, abs=0.007)
    assert shares[Split.test] == pytest.approx(0.15, abs=0.007)
    np.testing.assert_array_equal(split[:1000], split_of(ids[:1000]))
    assert [s.name for s in Split] == ["train", "val", "test"]


def test_calibration_rows_are_a_third_of_validation(batch: SampleBatch) -> None:
    ids = sample_ids(NAMESPACE, range(len(batch)))
    batch = replace(batch, sample_id=ids)
    assert set(batch.split[batch.is_calibration]) == {Split.val}
    assert batch.is_calibration.mean() == pytest.approx(0.05, abs=0.01)


def test_digest_does_not_depend_on_the_batches(batch: SampleBatch) -> None:
    whole = samples_digest([batch])
    for size in (1000, 8192, 8499):
        parts = [batch.take(slice(start, start + size)) for start in range(0, len(batch), size)]
        assert samples_digest(iter(parts)) == whole
    assert samples_digest([batch.take(slice(0, 0)), batch]) == whole


def test_digest_depends_on_every_column_and_on_the_order(batch: SampleBatch) -> None:
    small = batch.take(slice(0, 20))
    digests = {samples_digest([small]), samples_digest([small.take(slice(None, None, -1))])}
    for field in fields(small):
        column = getattr(small, field.name).copy()
        flat = column.reshape(-1)
        flat[-1] = ~flat[-1] if column.dtype == bool else 1 if flat[-1] != 1 else 2
        digests.add(samples_digest([replace(small, **{field.name: column})]))
    assert len(digests) == 2 + len(fields(small))


def test_what_was_not_measured_is_marked(batch: SampleBatch) -> None:
    assert not (batch.toa_present & ~batch.signal_present).any()
    assert (batch.snr_db[~batch.signal_present] == 0).all()
    assert (batch.toa_ns[~batch.toa_present] == 0).all()
    assert (batch.toa_sigma_ns[~batch.toa_present] == 0).all()
    assert (batch.toa_sigma_ns[batch.toa_present] >= 50).all()
    np.testing.assert_array_equal(batch.num_receivers, batch.signal_present.sum(1))
