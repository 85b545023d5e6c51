"""The columnar batch of samples that simulator, database, tensors and solvers all speak; ids and the split rule."""

import hashlib
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from enum import IntEnum
from typing import Self

import numpy as np
from numpy.typing import NDArray

# Little-endian: the digest is taken over these very bytes.
SAMPLE_DTYPES: dict[str, str] = {
    "sample_index": "<i8",
    "tx_lat": "<f8",
    "tx_lon": "<f8",
    "tx_power_dbm": "<f4",
    "frequency_hz": "<i8",
    "hdop": "<f4",
    "gdop": "<f4",
    "crlb_m": "<f4",
}
RECEIVER_DTYPES: dict[str, str] = {
    "signal_present": "|b1",
    "toa_present": "|b1",
    "snr_db": "<f4",
    "power_dbm": "<f4",
    "frequency_offset_hz": "<f4",
    "toa_ns": "<f8",
    "toa_sigma_ns": "<f4",
}
DIGEST_CHUNK = 8192

# Raised with every change of the rule which sample is in which split; part of assets' code versions.
SPLIT_VERSION = 1
TRAIN_SHARE = 0.70
CALIBRATION_SHARE = 0.05
VALIDATION_SHARE = 0.15


class Split(IntEnum):
    """The part of a dataset a sample belongs to; the names are what the database stores."""

    train = 0
    val = 1
    test = 2


@dataclass(frozen=True)
class SampleBatch:
    """n samples of one network of r receivers, one array a column.

    ``hdop``, ``gdop`` and ``crlb_m`` are NaN where they do not exist (fewer than three arrival times, no information):
    null in every place that leaves NumPy. Where ``signal_present`` is false, ``power_dbm`` holds the noise floor and
    ``snr_db`` 0; where ``toa_present`` is false, ``toa_ns`` and ``toa_sigma_ns`` hold 0. ``toa_ns`` counts from an
    unknown emission-related epoch: only differences between receivers carry information.

    Raises ValueError where a column has another shape or dtype than declared.
    """

    sample_id: NDArray[np.uint8]  # (n, 16) UUID bytes
    sample_index: NDArray[np.int64]  # (n,) place in the dataset
    tx_lat: NDArray[np.float64]  # (n,) degrees
    tx_lon: NDArray[np.float64]  # (n,) degrees
    tx_power_dbm: NDArray[np.float32]  # (n,)
    frequency_hz: NDArray[np.int64]  # (n,)
    hdop: NDArray[np.float32]  # (n,)
    gdop: NDArray[np.float32]  # (n,)
    crlb_m: NDArray[np.float32]  # (n,)
    signal_present: NDArray[np.bool_]  # (n, r)
    toa_present: NDArray[np.bool_]  # (n, r)
    snr_db: NDArray[np.float32]  # (n, r)
    power_dbm: NDArray[np.float32]  # (n, r)
    frequency_offset_hz: NDArray[np.float32]  # (n, r)
    toa_ns: NDArray[np.float64]  # (n, r)
    toa_sigma_ns: NDArray[np.float32]  # (n, r)

    def __post_init__(self) -> None:
        n, r = len(self), self.num_sites
        expected: dict[str, tuple[str, tuple[int, ...]]] = {"sample_id": ("|u1", (n, 16))}
        expected |= {name: (dtype, (n,)) for name, dtype in SAMPLE_DTYPES.items()}
        expected |= {name: (dtype, (n, r)) for name, dtype in RECEIVER_DTYPES.items()}
        for name, (dtype, shape) in expected.items():
            column = getattr(self, name)
            if column.dtype != np.dtype(dtype) or column.shape != shape:
                raise ValueError(f"{name} must be {dtype} {shape}, is {column.dtype.str} {column.shape}")

    def __len__(self) -> int:
        return len(self.sample_index)

    @property
    def num_sites(self) -> int:
        """Receivers of the network (the length of every per-receiver row)."""
        return self.signal_present.shape[1]

    @property
    def num_receivers(self) -> NDArray[np.int64]:
        """(n,) how many receivers detected each transmission."""
        return self.signal_present.sum(1)

    @property
    def split(self) -> NDArray[np.uint8]:
        """(n,) ``Split`` of each sample, from its id alone: stable when a dataset grows."""
        return split_of(self.sample_id)

    @property
    def is_calibration(self) -> NDArray[np.bool_]:
        """(n,) the reserved range of the validation part on which the covariance scale is fitted."""
        share = _hash_share(self.sample_id)
        return (share >= TRAIN_SHARE) & (share < TRAIN_SHARE + CALIBRATION_SHARE)

    def take(self, rows: NDArray[np.bool_] | NDArray[np.integer] | slice) -> Self:
        """The samples picked by a mask, indices or a slice."""
        return type(self)(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})

    @classmethod
    def concatenate(cls, batches: Sequence[Self]) -> Self:
        """One batch of all rows, in the order given."""
        return cls(**{f.name: np.concatenate([getattr(b, f.name) for b in batches]) for f in fields(cls)})


def split_of(sample_id: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(n,) ``Split`` by hash: 70 % train, 15 % val, 15 % test. ``sample_id`` is (n, 16)."""
    share = _hash_share(sample_id)
    split = np.full(len(sample_id), Split.test, np.uint8)
    split[share < TRAIN_SHARE + VALIDATION_SHARE] = Split.val
    split[share < TRAIN_SHARE] = Split.train
    return split


def split_fault(splits: Sequence[SampleBatch]) -> str | None:
    """None where no sample is in two splits and together they are a dataset (every index from 0 on, once), or one
    sentence."""
    ids = np.concatenate([split.sample_id for split in splits])
    indices = np.concatenate([split.sample_index for split in splits])
    if repeated := len(ids) - len(np.unique(ids, axis=0)):
        return f"{repeated:,} of {len(ids):,} samples are in more than one place"
    if not np.array_equal(np.sort(indices), np.arange(len(indices))):
        return f"the indices of the {len(indices):,} samples are not 0 to {len(indices) - 1:,}, each once"
    return None


def _hash_share(sample_id: NDArray[np.uint8]) -> NDArray[np.float64]:
    """(n,) in [0, 1): the first 32 bits of the UUID, which is a SHA-1, as a fraction."""
    return np.ascontiguousarray(sample_id[:, :4]).view(">u4")[:, 0] / 2.0**32


def sample_ids(namespace: uuid.UUID, indices: Iterable[int]) -> NDArray[np.uint8]:
    """(n, 16) bytes of UUIDv5(namespace, index) (RFC 9562, section 5.5; the name is the index in decimal)."""
    prefix = hashlib.sha1(namespace.bytes, usedforsecurity=False)

    def digest(index: int) -> bytes:
        sha1 = prefix.copy()
        sha1.update(b"%d" % index)
        return sha1.digest()

    ids = np.frombuffer(b"".join(map(digest, indices)), np.uint8).reshape(-1, 20)[:, :16].copy()
    ids[:, 6] = ids[:, 6] & 0x0F | 0x50
    ids[:, 8] = ids[:, 8] & 0x3F | 0x80
    return ids


def samples_digest(batches: Iterable[SampleBatch]) -> str:
    """SHA-256 over all columns, little-endian, in index order.

    Rows are hashed in blocks of ``DIGEST_CHUNK``, column after column within a block, whatever the batches' sizes, so a
    dataset can be hashed while it streams. Creation times are no column.
    """
    sha = hashlib.sha256()
    held: list[SampleBatch] = []
    for batch in batches:
        held.append(batch)
        if sum(map(len, held)) >= DIGEST_CHUNK:
            whole = SampleBatch.concatenate(held)
            full = len(whole) // DIGEST_CHUNK * DIGEST_CHUNK
            for start in range(0, full, DIGEST_CHUNK):
                _hash_block(sha, whole.take(slice(start, start + DIGEST_CHUNK)))
            held = [whole.take(slice(full, None))]
    if held:
        rest = SampleBatch.concatenate(held)
        if len(rest):
            _hash_block(sha, rest)
    return sha.hexdigest()


def _hash_block(sha: "hashlib._Hash", block: SampleBatch) -> None:
    for field in fields(block):
        column = np.ascontiguousarray(getattr(block, field.name))
        sha.update(f"{field.name}:{column.dtype.str}:{column.shape}".encode())
        sha.update(column.tobytes())
