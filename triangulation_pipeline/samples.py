"""Measurements whose truth is known: simulated samples, their ids, the split rule and the digest."""

import hashlib
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from triangulation_pipeline.frame import LocalFrame
from triangulation_pipeline.measurements import RECEIVER_DTYPES, Measurements

# Little-endian: the digest is taken over these very bytes.
SAMPLE_DTYPES: dict[str, str] = {
    "sample_index": "<i8",
    "tx_lat": "<f8",
    "tx_lon": "<f8",
    "tx_power_dbm": "<f4",
    "hdop": "<f4",
    "gdop": "<f4",
    "crlb_m": "<f4",
}
# What a dataset's digest covers, in this order. A dataset keeps the list that it was written with, so a later column
# leaves the digests of older datasets as they are. Time and altitude are none of them: they follow from the index and
# the scenario.
DIGEST_COLUMNS = (
    "sample_id",
    "sample_index",
    "tx_lat",
    "tx_lon",
    "tx_power_dbm",
    "frequency_hz",
    "hdop",
    "gdop",
    "crlb_m",
    *RECEIVER_DTYPES,
)
DIGEST_CHUNK = 8192

# Raised with every change of the rule which sample is in which split; part of assets' code versions.
SPLIT_VERSION = 1
TRAIN_SHARE = 0.70
VALIDATION_SHARE = 0.15


class Split(IntEnum):
    """The part of a dataset that a sample belongs to; the database stores these names."""

    train = 0
    val = 1
    test = 2


@dataclass(frozen=True)
class Samples(Measurements):
    """Measurements of transmitters at known places, with the bounds of how well these places can be known.

    ``hdop``, ``gdop`` and ``crlb_m`` are NaN if they do not exist (fewer than three arrival times, no information):
    null in every place outside NumPy.

    Raises ValueError if a column has another shape or dtype than declared.
    """

    sample_id: NDArray[np.uint8]  # (n, 16) UUID bytes
    sample_index: NDArray[np.int64]  # (n,) place in the dataset
    tx_lat: NDArray[np.float64]  # (n,) degrees
    tx_lon: NDArray[np.float64]  # (n,) degrees
    tx_power_dbm: NDArray[np.float32]  # (n,)
    hdop: NDArray[np.float32]  # (n,)
    gdop: NDArray[np.float32]  # (n,)
    crlb_m: NDArray[np.float32]  # (n,)

    @classmethod
    def _declared(cls, n: int, r: int) -> dict[str, tuple[str, tuple[int, ...]]]:
        return (
            super()._declared(n, r)
            | {"sample_id": ("|u1", (n, 16))}
            | {name: (dtype, (n,)) for name, dtype in SAMPLE_DTYPES.items()}
        )

    def tx_en_m(self, frame: LocalFrame) -> NDArray[np.float64]:
        """True places of the transmitters.

        Parameters
        ----------
        frame : LocalFrame
            The frame of the network.

        Returns
        -------
        ndarray, shape (n, 2)
            East and north, metres.
        """
        return frame.en_m(self.tx_lat, self.tx_lon, self.tx_altitude_m)

    @property
    def split(self) -> NDArray[np.uint8]:
        """(n,) ``Split`` of each sample, from its id alone: stable when a dataset grows."""
        return split_of(self.sample_id)


def split_of(sample_id: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(n,) ``Split`` by hash: 70 % train, 15 % val, 15 % test. ``sample_id`` is (n, 16)."""
    # The first 32 bits of the UUID, which is a SHA-1, as a fraction.
    share = np.ascontiguousarray(sample_id[:, :4]).view(">u4")[:, 0] / 2.0**32
    split = np.full(len(sample_id), Split.test, np.uint8)
    split[share < TRAIN_SHARE + VALIDATION_SHARE] = Split.val
    split[share < TRAIN_SHARE] = Split.train
    return split


def split_fault(splits: Sequence[Samples]) -> str | None:
    """None if the splits are disjoint and together a whole dataset (every index from 0 on, once); else one sentence
    that says what is wrong."""
    ids = np.concatenate([split.sample_id for split in splits])
    indices = np.concatenate([split.sample_index for split in splits])
    if repeated := len(ids) - len(np.unique(ids, axis=0)):
        return f"{repeated:,} of {len(ids):,} samples are in more than one place"
    if not np.array_equal(np.sort(indices), np.arange(len(indices))):
        return f"the indices of the {len(indices):,} samples are not 0 to {len(indices) - 1:,}, each once"
    return None


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


def samples_digest(batches: Iterable[Samples], columns: Sequence[str] = DIGEST_COLUMNS) -> str:
    """SHA-256 over the named columns, little-endian, in index order.

    Rows are hashed in blocks of ``DIGEST_CHUNK``, column after column within a block, whatever the batches' sizes, so a
    dataset can be hashed while it streams. Creation times are no column.
    """
    sha = hashlib.sha256()
    held: list[Samples] = []
    for batch in batches:
        held.append(batch)
        if sum(map(len, held)) >= DIGEST_CHUNK:
            whole = Samples.concatenate(held)
            full = len(whole) // DIGEST_CHUNK * DIGEST_CHUNK
            for start in range(0, full, DIGEST_CHUNK):
                _hash_block(sha, whole.take(slice(start, start + DIGEST_CHUNK)), columns)
            held = [whole.take(slice(full, None))]
    if held:
        rest = Samples.concatenate(held)
        if len(rest):
            _hash_block(sha, rest, columns)
    return sha.hexdigest()


def _hash_block(sha: "hashlib._Hash", block: Samples, columns: Sequence[str]) -> None:
    for name in columns:
        column = np.ascontiguousarray(getattr(block, name))
        sha.update(f"{name}:{column.dtype.str}:{column.shape}".encode())
        sha.update(column.tobytes())
