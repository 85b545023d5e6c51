"""The view of calibrations shows which sites are compared with each other: biases of other groups have another zero."""

from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    is_sqlite = op.get_bind().dialect.name == "sqlite"
    # New columns come last: so PostgreSQL replaces the view in place, and rights to read it stay.
    if is_sqlite:
        op.execute("DROP VIEW calibration_overview")
    op.execute(
        f"CREATE {'' if is_sqlite else 'OR REPLACE '}VIEW calibration_overview AS "
        "SELECT id AS calibration_id, network_name, network_digest, "
        "network_name || ' (' || substr(network_digest, 1, 8) || ')' AS network, created_at, from_ns, to_ns, site, "
        "num_rows, toa_bias_ns, toa_bias_sigma_ns, toa_sigma_factor, toa_sigma_factor_sigma, drift_ns_per_s, "
        "drift_sigma_ns_per_s, outlier_share, outlier_share_sigma, gain_offset_db, gain_offset_sigma_db, site_group "
        "FROM site_calibrations"
    )
