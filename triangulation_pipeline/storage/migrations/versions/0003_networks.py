"""Whose network a model is: shown by the views; and whether it passed its checks apart from whether it was promoted.

A version that passed is not promoted by itself in place of one of another network, but may be by hand.
"""

from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    is_sqlite = op.get_bind().dialect.name == "sqlite"
    op.execute("ALTER TABLE models ADD COLUMN passed BOOLEAN NOT NULL DEFAULT false")
    op.execute("UPDATE models SET passed = promoted")

    def of_json(column: str, *names: str) -> str:
        """Numbers out of a JSON column, each under its own name."""
        if is_sqlite:
            return ", ".join(f"json_extract({column}, '$.{name}') AS {name}" for name in names)
        return ", ".join(f"({column} ->> '{name}')::float8 AS {name}" for name in names)

    def replace_view(name: str, query: str) -> None:
        """New columns come last: so PostgreSQL replaces the view in place, and rights to read it stay."""
        if is_sqlite:
            op.execute(f"DROP VIEW {name}")
        op.execute(f"CREATE {'' if is_sqlite else 'OR REPLACE '}VIEW {name} AS {query}")

    measured = (
        "test_rmse_m",
        "test_rmse_good_geom_m",
        "test_p50_good_geom_m",
        "test_p95_good_geom_m",
        "test_coverage_95_good_geom",
        "huber_gauss_newton_p95_good_geom_m",
        "crlb_rms_good_geom_m",
    )
    network = "network_name || ' (' || substr(network_digest, 1, 8) || ')' AS network"
    replace_view(
        "model_overview",
        "SELECT id AS model_id, model_name, version, is_active, is_production, production_since, promoted, "
        "promotion_reason, model_architecture, epoch, "
        + of_json("metrics", *measured)
        + ", trained_by_job_id AS job_id, synthetic_dataset_id AS dataset_id, parent_model_id, network_name, "
        f"network_digest, sha256, pytorch_model_location AS location, created_at, passed, {network} FROM models",
    )
    promoted = "json_extract(metrics, '$.promoted')" if is_sqlite else "(metrics ->> 'promoted')::boolean"
    reason = "json_extract(metrics, '$.promotion_reason')" if is_sqlite else "metrics ->> 'promotion_reason'"
    headline = "json_extract(metrics, '$.headline')" if is_sqlite else "(metrics -> 'headline')"
    replace_view(
        "evaluation_overview",
        "SELECT e.id AS evaluation_id, training_job_id AS job_id, model_id, synthetic_dataset_id AS dataset_id, epoch, "
        f"{promoted} AS passed, {reason} AS verdict, "
        + of_json(headline, *measured)
        + f", checkpoint_sha256 AS sha256, evaluated_at, network_name, network_digest, {network} "
        "FROM model_evaluations AS e JOIN synthetic_datasets AS d ON d.id = synthetic_dataset_id",
    )
