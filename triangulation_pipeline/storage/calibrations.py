"""Calibrations of the sites of networks, a row for each site."""

from dataclasses import dataclass
from uuid import uuid4

from sqlalchemy import Engine, String, cast, insert, select

from triangulation_pipeline.calibration import SiteCalibration
from triangulation_pipeline.calibration_file import NUMBERS, calibration_document, calibration_of
from triangulation_pipeline.network import ReceiverNetwork
from triangulation_pipeline.storage.columns import now
from triangulation_pipeline.storage.engine import in_one_transaction, reading
from triangulation_pipeline.storage.errors import StorageError
from triangulation_pipeline.storage.tables import site_calibrations
from triangulation_pipeline.validation import printable, shown

_PLACE = ("lat", "lon", "altitude_m")
_VALUES = (*_PLACE, *NUMBERS, *(sigma for sigma, _, _ in NUMBERS.values()))


@dataclass(frozen=True)
class StoredCalibration:
    """A calibration of the database, for the sites of one network."""

    id: str
    calibration: SiteCalibration


def store_calibration(engine: Engine, calibration: SiteCalibration, network: ReceiverNetwork) -> str:
    """Adds a calibration of a network; returns its id. Raises StorageError if the database cannot be written."""
    calibration_id, document = str(uuid4()), calibration_document(calibration, network)
    common = {
        "id": calibration_id,
        "network_name": network.name,
        "network_digest": network.digest,
        "created_at": now(),
        "from_ns": document["from_ns"],
        "to_ns": document["to_ns"],
    }
    rows = [
        {**common, "site": site["name"], "num_rows": site["rows"], "site_group": site["group"]}
        | {name: site[name] for name in _VALUES}
        for site in document["sites"]
    ]
    in_one_transaction(engine, lambda connection: connection.execute(insert(site_calibrations), rows))
    return calibration_id


def find_calibration(engine: Engine, network: ReceiverNetwork, beginning: str | None = None) -> StoredCalibration:
    """The newest calibration of a network (by its digest), or the one whose id begins so, for the sites of the network.

    Raises StorageError if there is none, or if several ids begin so. Raises ValueError if its sites are others than
    those of the network, or stood elsewhere.
    """
    table = site_calibrations.c
    ids = select(table.id, table.created_at).distinct().order_by(table.created_at.desc())
    if beginning is None:
        ids = ids.where(table.network_digest == network.digest).limit(1)
    else:
        ids = ids.where(cast(table.id, String).startswith(beginning.lower(), autoescape=True))
    with reading(engine) as connection:
        found = connection.scalars(ids).all()
        if not found:
            sought = f"whose id begins with {shown(beginning)}" if beginning is not None else f"of {_named(network)}"
            raise StorageError(
                f"no calibration {sought} is stored; `triangulation calibrate` with --store makes one, and "
                "`triangulation calibrations` lists them"
            )
        if len(found) > 1:
            some = ", ".join(sorted(found)[:3])
            raise StorageError(f"{len(found)} calibrations have ids that begin with {shown(beginning)}: {some}")
        rows = connection.execute(select(site_calibrations).where(table.id == found[0])).mappings().all()
    sites = [
        {"name": row["site"], "rows": row["num_rows"], "group": row["site_group"]}
        | {name: row[name] for name in _VALUES}
        for row in rows
    ]
    document = {"network": rows[0]["network_name"], "from_ns": rows[0]["from_ns"], "to_ns": rows[0]["to_ns"]}
    try:
        return StoredCalibration(found[0], calibration_of(document | {"sites": sites}, network))
    except ValueError as error:
        raise ValueError(f"calibration {found[0]}: {error}") from None


def _named(network: ReceiverNetwork) -> str:
    return f"the network {printable(network.name)} ({network.digest[:8]})"
