"""Which receptions are of one transmission."""

from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from triangulation_pipeline.formats.instants import texts
from triangulation_pipeline.formats.receptions import Receptions

Bool = NDArray[np.bool_]
Float = NDArray[np.float64]
Int = NDArray[np.int64]


@dataclass(frozen=True)
class Groups:
    """Rows of g transmissions: which one each row belongs to, its id and first line. A row without an id has -1."""

    of_row: Int  # (n,)
    ids: NDArray[np.object_]  # (g,)
    first_line: Int  # (g,)

    @classmethod
    def of(cls, rows: Receptions) -> "Groups":
        encoded = pc.dictionary_encode(texts(rows.columns["transmission_id"]))
        of_row = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
        ids = encoded.dictionary.to_numpy(zero_copy_only=False)
        known = of_row >= 0
        first_line = np.full(len(ids), np.iinfo(np.int64).max)
        np.minimum.at(first_line, of_row[known], rows.line[known])
        return cls(of_row, ids, first_line)

    def __len__(self) -> int:
        return len(self.ids)

    def middle(self, values: NDArray, rows: Bool) -> NDArray:
        """(g,) the median of some rows of each transmission, the lower of two; 0 if there are none."""
        at, found = self.of_row[rows], np.zeros(len(self), values.dtype)
        order = np.lexsort((values[rows], at))
        group, start, count = np.unique(at[order], return_index=True, return_counts=True)
        found[group] = values[rows][order][start + (count - 1) // 2]
        return found

    def first(self, values: Float, rows: Bool) -> Float:
        """(g,) the first value of each transmission among some rows that is no NaN; NaN if there is none."""
        at = np.flatnonzero(rows & ~np.isnan(values))
        group, start = np.unique(self.of_row[at], return_index=True)
        found = np.full(len(self), np.nan)
        found[group] = values[at[start]]
        return found
