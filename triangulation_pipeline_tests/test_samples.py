import hashlib
import uuid
from dataclasses import fields, replace

import numpy as np
import pytest

from triangulation_pipeline.measurements import RECEIVER_DTYPES, TRANSMISSION_DTYPES
from triangulation_pipeline.network import NORTH_WEST_ITALY
from triangulation_pipeline.physics.dataset_spec import DatasetSpec
from triangulation_pipeline.physics.scenario import PRESETS, Preset
from triangulation_pipeline.physics.simulator import simulate_chunk
from triangulation_pipeline.samples import (
    DIGEST_COLUMNS,
    SAMPLE_DTYPES,
    Samples,
    Split,
    sample_ids,
    samples_digest,
    split_fault,
    split_of,
)

# In the order of the digest, which gives each column its first number.
BY_ROW = {name: (SAMPLE_DTYPES | TRANSMISSION_DTYPES)[name] for name in DIGEST_COLUMNS[1:9]} | TRANSMISSION_DTYPES
NAMESPACE = uuid.UUID(int=7)


def counted(n: int) -> Samples:
    """Samples of three sites whose columns are whole numbers that count up: the same on every machine."""

    def column(dtype: str, first: int, *shape: int) -> np.ndarray:
        count = np.arange(first, first + int(np.prod(shape)))
        return (count % 2 if dtype == "|b1" else count).astype(dtype).reshape(shape)

    return Samples(
        sample_id=(np.arange(16 * n) % 251).astype(np.uint8).reshape(n, 16),
        **{name: column(dtype, i, n) for i, (name, dtype) in enumerate(BY_ROW.items())},
        **{name: column(dtype, i, n, 3) for i, (name, dtype) in enumerate(RECEIVER_DTYPES.items())},
    )


def ids_that_begin_with(*first_four_bytes: int) -> np.ndarray:
    """Ids (n, 16) whose first four bytes are the number; the others are all ones, and say nothing."""
    rows = [value.to_bytes(4, "big") + b"\xff" * 12 for value in first_four_bytes]
    return np.frombuffer(b"".join(rows), np.uint8).reshape(-1, 16).copy()


@pytest.fixture(scope="module")
def batch() -> Samples:
    spec = DatasetSpec(NORTH_WEST_ITALY, PRESETS[Preset.valley], 500, 0)
    return Samples.concatenate([simulate_chunk(spec, 0).batch] * 17)


def test_wrong_columns_are_refused(batch: Samples) -> None:
    with pytest.raises(ValueError, match=r"toa_sigma_ns must be <f4 \(8500, 7\), is <f8"):
        replace(batch, toa_sigma_ns=batch.toa_sigma_ns.astype(np.float64))
    with pytest.raises(ValueError, match=r"tx_lat must be <f8 \(8500,\), is <f8 \(8499,\)"):
        replace(batch, tx_lat=batch.tx_lat[1:])
    with pytest.raises(ValueError, match="snr_db must be"):
        replace(batch, snr_db=batch.snr_db[:, :6])
    with pytest.raises(ValueError, match="tx_lon must be <f8"):
        replace(batch, tx_lon=batch.tx_lon.astype(">f8"))


@pytest.mark.parametrize("name", [field.name for field in fields(Samples)])
def test_every_column_has_its_dtype_and_its_shape(name: str) -> None:
    batch = counted(4)
    column = getattr(batch, name)
    if name != "time_ns":  # whose length is that of the batch
        with pytest.raises(ValueError, match=f"^{name} must be .* is "):
            replace(batch, **{name: column[1:]})
    with pytest.raises(ValueError, match=f"^{name} must be .* is "):
        replace(batch, **{name: column[:, None]})
    with pytest.raises(ValueError, match=f"^{name} must be .* is <i2"):
        replace(batch, **{name: column.astype(np.int16)})


def test_take_and_concatenate_are_inverse(batch: Samples) -> None:
    odd = batch.sample_index % 2 == 1
    joined = Samples.concatenate([batch.take(odd), batch.take(~odd)])
    order = np.argsort(np.concatenate([np.flatnonzero(odd), np.flatnonzero(~odd)]))
    for field in fields(batch):
        np.testing.assert_array_equal(getattr(joined.take(order), field.name), getattr(batch, field.name))
    assert len(batch.take(slice(0, 0))) == 0


def test_a_network_of_fewer_sites_has_the_first_columns() -> None:
    batch = counted(4)
    cut = batch.of_sites(2)
    assert type(cut) is Samples
    assert cut.num_sites == 2
    for field in fields(Samples):
        whole = getattr(batch, field.name)
        np.testing.assert_array_equal(
            getattr(cut, field.name), whole[:, :2] if field.name in RECEIVER_DTYPES else whole
        )


def test_ids_are_version_5_uuids() -> None:
    indices = [*range(100), 123_456_789]
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
    assert [(s.name, s.value) for s in Split] == [("train", 0), ("val", 1), ("test", 2)]


@pytest.mark.parametrize(
    ("first_four_bytes", "split"),
    [
        (0x00000000, Split.train),
        (0xB3333333, Split.train),  # the last below 0.70 * 2^32
        (0xB3333334, Split.val),
        (0xD9999999, Split.val),  # the last below 0.85
        (0xD999999A, Split.test),
        (0xFFFFFFFF, Split.test),
    ],
)
def test_the_split_is_by_the_first_four_bytes_of_the_id(first_four_bytes: int, split: Split) -> None:
    batch = replace(counted(1), sample_id=ids_that_begin_with(first_four_bytes))
    assert split_of(batch.sample_id).tolist() == batch.split.tolist() == [split]


def test_splits_with_every_index_once_have_no_fault() -> None:
    batch = counted(10)
    assert split_fault([batch.take(slice(5, 10)), batch.take(slice(0, 4)), batch.take(slice(4, 5))]) is None


def test_a_sample_in_two_splits_is_a_fault() -> None:
    batch = counted(10)
    told = split_fault([batch.take(slice(0, 6)), batch.take(slice(4, 10)), batch.take(slice(0, 0))])
    assert told == "2 of 12 samples are in more than one place"
    # Also where only the id says so, and each index is there once.
    alike = batch.sample_id.copy()
    alike[9] = alike[0]
    assert split_fault([replace(batch, sample_id=alike)]) == "1 of 10 samples are in more than one place"


@pytest.mark.parametrize("lost", [0, 4, 9])
def test_a_sample_that_no_split_has_is_a_fault(lost: int) -> None:
    batch = counted(11)
    kept = np.arange(11) != lost
    told = split_fault([batch.take(kept & (np.arange(11) < 6)), batch.take(kept & (np.arange(11) >= 6))])
    assert told == "the indices of the 10 samples are not 0 to 9, each once"


def test_an_index_that_two_samples_have_is_a_fault() -> None:
    batch = counted(10)
    index = np.where(np.arange(10) == 9, 3, np.arange(10))
    told = split_fault([replace(batch, sample_index=index)])
    assert told == "the indices of the 10 samples are not 0 to 9, each once"


def test_the_digest_of_stored_samples_stays_what_it_was() -> None:
    """With another digest, all stored datasets seem changed after they were written: order, names, dtypes, shapes and
    bytes of the columns, and the length of a block, are a format."""
    assert samples_digest([counted(3)]) == "5ebfe20e7cc4da6c8918a5aaf124af6818f41616e54beee18e4305daf9435f55"
    assert samples_digest([counted(9000)]) == "6f55193941bd39f65a042da8d03318de124ef08e1b1ef4a77eb5856ca48e40a8"
    assert samples_digest([]) == samples_digest([counted(0)]) == hashlib.sha256(b"").hexdigest()


def test_digest_does_not_depend_on_the_batches(batch: Samples) -> None:
    whole = samples_digest([batch])
    for size in (1000, 8192, 8499):
        parts = [batch.take(slice(start, start + size)) for start in range(0, len(batch), size)]
        assert samples_digest(iter(parts)) == whole
    assert samples_digest([batch.take(slice(0, 0)), batch]) == whole


def test_digest_depends_on_every_column_and_on_the_order(batch: Samples) -> None:
    small = batch.take(slice(0, 20))
    digests = {samples_digest([small]), samples_digest([small.take(slice(None, None, -1))])}
    for name in DIGEST_COLUMNS:
        column = getattr(small, name).copy()
        flat = column.reshape(-1)
        flat[-1] = ~flat[-1] if column.dtype == bool else 1 if flat[-1] != 1 else 2
        digests.add(samples_digest([replace(small, **{name: column})]))
    assert len(digests) == 2 + len(DIGEST_COLUMNS)
    # What follows from the index and the scenario is left out.
    assert {field.name for field in fields(small)} - set(DIGEST_COLUMNS) == {"time_ns", "tx_altitude_m"}


def test_a_digest_covers_the_columns_it_is_asked_for(batch: Samples) -> None:
    """So a column that is added later leaves the digests of older datasets as they are."""
    small = batch.take(slice(0, 20))
    fewer = [name for name in DIGEST_COLUMNS if name != "snr_db"]
    changed = replace(small, snr_db=small.snr_db + 1)
    assert samples_digest([changed], fewer) == samples_digest([small], fewer)
    assert samples_digest([changed]) != samples_digest([small])
    assert samples_digest([small], fewer) != samples_digest([small])


def test_what_was_not_measured_is_marked(batch: Samples) -> None:
    assert not (batch.toa_present & ~batch.signal_present).any()
    assert (batch.snr_db[~batch.signal_present] == 0).all()
    assert (batch.toa_ns[~batch.toa_present] == 0).all()
    assert (batch.toa_sigma_ns[~batch.toa_present] == 0).all()
    assert (batch.toa_sigma_ns[batch.toa_present] >= 50).all()
    np.testing.assert_array_equal(batch.num_detections, batch.signal_present.sum(1))
