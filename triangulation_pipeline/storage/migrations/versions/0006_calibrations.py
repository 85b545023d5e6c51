"""Calibrations of the sites of a network, a row for each site."""

import sqlalchemy as sa
from alembic import op

from triangulation_pipeline.storage.columns import UtcDateTime, UuidText

revision = "0006"
down_revision = "0005"

NUMBERS = (
    "toa_bias_ns",
    "toa_bias_sigma_ns",
    "toa_sigma_factor",
    "toa_sigma_factor_sigma",
    "drift_ns_per_s",
    "drift_sigma_ns_per_s",
    "outlier_share",
    "outlier_share_sigma",
    "gain_offset_db",
    "gain_offset_sigma_db",
)


def upgrade() -> None:
    op.create_table(
        "site_calibrations",
        sa.Column("id", UuidText, nullable=False),
        sa.Column("site", sa.String(100), nullable=False),
        sa.Column("network_name", sa.String(100), nullable=False),
        sa.Column("network_digest", sa.String(64), nullable=False),
        sa.Column("created_at", UtcDateTime, nullable=False),
        sa.Column("from_ns", sa.BigInteger),
        sa.Column("to_ns", sa.BigInteger),
        *(sa.Column(name, sa.Double, nullable=False) for name in ("lat", "lon", "altitude_m")),
        sa.Column("num_rows", sa.BigInteger, nullable=False),
        sa.Column("site_group", sa.Integer, nullable=False),
        *(sa.Column(name, sa.Double) for name in NUMBERS),
        sa.PrimaryKeyConstraint("id", "site", name="pk_site_calibrations"),
    )
    op.create_index(
        "ix_site_calibrations_network_digest_created_at", "site_calibrations", ["network_digest", "created_at"]
    )
    op.execute(
        "CREATE VIEW calibration_overview AS SELECT id AS calibration_id, network_name, network_digest, "
        "network_name || ' (' || substr(network_digest, 1, 8) || ')' AS network, created_at, from_ns, to_ns, site, "
        f"num_rows, {', '.join(NUMBERS)} FROM site_calibrations"
    )
