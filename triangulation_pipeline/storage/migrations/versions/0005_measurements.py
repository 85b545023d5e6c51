"""A detection is called one, a network is its sites and not its name, and a digest says which columns it covers."""

import hashlib
import json

import sqlalchemy as sa
from alembic import op

from triangulation_pipeline.storage.columns import Json

revision = "0005"
down_revision = "0004"

# What the digest of every dataset of before covers.
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
    "signal_present",
    "toa_present",
    "snr_db",
    "power_dbm",
    "frequency_offset_hz",
    "toa_ns",
    "toa_sigma_ns",
)


def upgrade() -> None:
    op.execute("ALTER TABLE synthetic_training_samples RENAME COLUMN num_receivers TO num_detections")
    op.add_column("synthetic_datasets", sa.Column("digest_columns", Json))
    datasets = sa.table(
        "synthetic_datasets",
        sa.column("id"),
        sa.column("config", Json),
        sa.column("network_digest"),
        sa.column("digest_columns", Json),
    )
    models = sa.table("models", sa.column("synthetic_dataset_id"), sa.column("network_digest"))
    connection = op.get_bind()
    connection.execute(sa.update(datasets).values(digest_columns=list(DIGEST_COLUMNS)))
    for dataset_id, config in connection.execute(sa.select(datasets.c.id, datasets.c.config)).all():
        if "network" in config:
            digest = {"network_digest": _network_digest(config["network"]["sites"])}
            connection.execute(sa.update(datasets).where(datasets.c.id == dataset_id).values(digest))
            connection.execute(sa.update(models).where(models.c.synthetic_dataset_id == dataset_id).values(digest))


def _network_digest(sites: list[dict[str, object]]) -> str:
    """As ``ReceiverNetwork.digest`` is from this version on."""
    identity = {"name": "north-west-italy", "sites": sites}
    return hashlib.sha256(json.dumps(identity, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
