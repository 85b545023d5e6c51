"""What a model is by its predictions, apart from the bytes of its file: equal weights are one version of a name.

Rows from before have no such digest: it would have to be read out of their files.
"""

from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    is_sqlite = op.get_bind().dialect.name == "sqlite"
    for table in ("models", "model_evaluations"):
        op.execute(f"ALTER TABLE {table} ADD COLUMN weights_digest VARCHAR(64)")
    op.create_index("uq_models_model_name_weights_digest", "models", ["model_name", "weights_digest"], unique=True)

    def of_json(column: str, *names: str) -> str:
        """Numbers out of a JSON column, each under its own name."""
        if is_sqlite:
            return ", ".join(f"json_extract({column}, '$.{name}') AS {name}" for name in names)
        return ", ".join(f"({column} ->> '{name}')::float8 AS {name}" for name in names)

    # New columns come last: so PostgreSQL replaces the view in place, and rights to read it stay.
    if is_sqlite:
        op.execute("DROP VIEW model_overview")
    op.execute(
        f"CREATE {'' if is_sqlite else 'OR REPLACE '}VIEW model_overview AS "
        "SELECT id AS model_id, model_name, version, is_active, is_production, production_since, promoted, "
        "promotion_reason, model_architecture, epoch, "
        + of_json(
            "metrics",
            "test_rmse_m",
            "test_rmse_good_geom_m",
            "test_p50_good_geom_m",
            "test_p95_good_geom_m",
            "test_coverage_95_good_geom",
            "huber_gauss_newton_p95_good_geom_m",
            "crlb_rms_good_geom_m",
        )
        + ", trained_by_job_id AS job_id, synthetic_dataset_id AS dataset_id, parent_model_id, network_name, "
        "network_digest, sha256, pytorch_model_location AS location, created_at, passed, "
        "network_name || ' (' || substr(network_digest, 1, 8) || ')' AS network, weights_digest FROM models"
    )
