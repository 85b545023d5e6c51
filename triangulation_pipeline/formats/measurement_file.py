"""Measurement files: one row for each reception (long form), or one for each transmission (wide form).

Rows of one transmission have one ``transmission_id`` and stand within ``WINDOW_LINES`` lines of its first row; others
may stand between them. A row that cannot be right is refused with a reason, and the others are used.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from triangulation_pipeline.formats.columns import PLAIN, ColumnMapping
from triangulation_pipeline.formats.nested import unnested
from triangulation_pipeline.formats.receptions import ReceptionReader, Receptions
from triangulation_pipeline.formats.recording import Recording
from triangulation_pipeline.formats.refusals import WINDOW_LINES
from triangulation_pipeline.formats.sources import Format, Piece, format_of, named, piece_of, pieces
from triangulation_pipeline.formats.transmissions import TransmissionReader
from triangulation_pipeline.physics.layout import Layout
from triangulation_pipeline.validation import shown


def read_measurements(
    path: str | Path,
    layout: Layout,
    mapping: ColumnMapping = PLAIN,
    file_format: str | None = None,
    live: bool = False,
) -> Iterator[Recording]:
    """Reads a measurement file in blocks of at most 8192 transmissions. The memory that it takes does not grow.

    The columns of the long form are ``transmission_id, time, receiver, toa_ns, toa_sigma_ns, rssi_dbm, snr_db,
    frequency_hz, frequency_offset_hz``, and ``latitude, longitude, altitude_m`` of transmitters that are known. The
    wide form has ``<receiver>.toa_ns`` and so on, in one row for each transmission. Names are case-blind, and the usual
    other names are known (``columns.ALIASES``).

    ``toa_ns`` are whole or decimal numbers of nanoseconds since 1970, from the ``time`` of the transmission, or from
    another moment that all receivers share. Which of these is decided once for a file, by the size of its first
    numbers. If there is no column ``time``, a transmission has the time of its first arrival.

    What a file leaves out: carrier and altitude of a transmitter are those of the scenario, a standard deviation is
    that of the site's clock (``timing`` in the network file), a frequency offset is 0; a level (``power_dbm``) and
    ``snr_db`` are NaN. A site without a row heard nothing, and has its noise floor, or NaN if the mapping says that its
    silence is unknown.

    Parameters
    ----------
    path : str or Path
        CSV, JSON lines or Parquet by its ending, also gzip; ``-`` is standard input.
    layout : Layout
        The network that measured, and the scenario that holds there.
    mapping : ColumnMapping, optional
        Other columns, units, constants and missing values, and what silence means (``read_mapping``).
    file_format : str, optional
        ``csv``, ``jsonl`` or ``parquet``, in place of the ending. Without it, standard input is CSV.
    live : bool, optional
        Whether the file is being written: a transmission is given as soon as a row of another one follows. Its rows
        then stand directly one after the other. Parquet cannot be read so.

    Yields
    ------
    Recording
        In the order of the transmissions' first rows. Each refused row is in one block; blocks may have nothing else.

    Raises
    ------
    ValueError
        With one sentence that names the file, if it is not what it says, lacks a column that is needed, or if its
        arrival times have too few digits.
    """
    place = named(str(path))
    try:
        kind = format_of(str(path), file_format)
        if live and kind is Format.parquet:
            raise ValueError("Parquet cannot be read while it is written, as its index is at the end")
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None
    return _with_place(place, _blocks(pieces(str(path), kind, live, mapping), layout, mapping, WINDOW_LINES, live))


def recording_of_frame(frame: pd.DataFrame, layout: Layout, mapping: ColumnMapping = PLAIN) -> Recording:
    """Measurements of a data frame, with the columns of a measurement file.

    Parameters
    ----------
    frame : DataFrame
        One row for each reception, in any order, or the wide form. The index is not used.
    layout : Layout
        The network that measured, and the scenario that holds there.
    mapping : ColumnMapping, optional
        As in ``read_measurements``.

    Returns
    -------
    Recording
        ``line`` is the number of the row, from 1.

    Raises
    ------
    ValueError
        As ``read_measurements``.
    """
    if not isinstance(frame, pd.DataFrame):
        raise ValueError(f"measurements must be a DataFrame, got {type(frame).__name__}")
    columns = []
    for name, column in frame.items():
        try:
            columns.append(pa.array(column, from_pandas=True))
        except (pa.ArrowException, TypeError) as error:
            raise ValueError(
                f"data frame: the column {shown(str(name))} has values of different kinds ({shown(str(error))})"
            ) from None
    table = pa.Table.from_arrays(columns, [str(name) for name in frame])
    # Made when it is read, so that its errors name the data frame too.
    pieces_of_frame = (piece_of(whole, 1) for whole in [table])
    # All rows are at hand, so those of a transmission may stand anywhere.
    blocks = _blocks(pieces_of_frame, layout, mapping, window=len(frame), live=False)
    return Recording.concatenate(list(_with_place("data frame", blocks)))


def _with_place(place: str, blocks: Iterator[Recording]) -> Iterator[Recording]:
    try:
        yield from blocks
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None


def _blocks(
    source: Iterable[Piece], layout: Layout, mapping: ColumnMapping, window: int, live: bool
) -> Iterator[Recording]:
    receptions = ReceptionReader(layout.network, mapping.sources)
    transmissions = TransmissionReader(layout, mapping, window, live)
    held = Receptions({}, np.zeros(0, np.int64))
    for piece in unnested(source, mapping):
        held = held.joined(receptions.of_piece(piece))
        finished = transmissions.finished(held)
        yield from transmissions.recordings(held.take(finished), piece.broken)
        held = held.take(~finished)
    if not receptions.has_rows:
        raise ValueError("it has no rows")
    yield from transmissions.recordings(held, [])
