"""What operating needs: who works on a job and whether it should stop, one model in production a name, views to read.

Columns are added in SQL, the same on both databases: on SQLite Alembic would copy a table to give it a constraint, and
dropping the old one would delete what refers to it.
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    is_sqlite = op.get_bind().dialect.name == "sqlite"
    uuid, moment = ("VARCHAR(36)", "TEXT") if is_sqlite else ("UUID", "TIMESTAMP WITH TIME ZONE")
    op.execute(f"ALTER TABLE training_jobs ADD COLUMN run_id {uuid}")
    op.execute("UPDATE training_jobs SET run_id = id")
    op.execute(
        "ALTER TABLE training_jobs ADD COLUMN stop_requested VARCHAR(6) "
        "CONSTRAINT ck_training_jobs_stop_requested_known CHECK (stop_requested IN ('pause', 'cancel'))"
    )
    op.execute("ALTER TABLE training_jobs ADD COLUMN heartbeats BIGINT NOT NULL DEFAULT 0")
    op.create_index(op.f("ix_training_jobs_run_id"), "training_jobs", ["run_id"])
    op.create_index(op.f("ix_training_jobs_status"), "training_jobs", ["status"])

    op.execute(
        f"ALTER TABLE models ADD COLUMN parent_model_id {uuid} "
        "CONSTRAINT fk_models_parent_model_id REFERENCES models (id)"
    )
    op.execute(f"ALTER TABLE models ADD COLUMN production_since {moment}")
    op.execute("UPDATE models SET production_since = created_at WHERE is_production")
    for column in ("is_active", "is_production"):
        op.create_index(
            f"uq_models_model_name_{column}",
            "models",
            ["model_name"],
            unique=True,
            sqlite_where=sa.text(column),
            postgresql_where=sa.text(column),
        )

    def of_json(column: str, *names: str) -> str:
        """Numbers out of a JSON column, each under its own name."""
        if is_sqlite:
            return ", ".join(f"json_extract({column}, '$.{name}') AS {name}" for name in names)
        return ", ".join(f"({column} ->> '{name}')::float8 AS {name}" for name in names)

    measured = (
        "test_rmse_m",
        "test_rmse_good_geom_m",
        "test_p50_good_geom_m",
        "test_p95_good_geom_m",
        "test_coverage_95_good_geom",
        "huber_gauss_newton_p95_good_geom_m",
        "crlb_rms_good_geom_m",
    )
    op.execute(
        "CREATE VIEW dataset_overview AS SELECT id AS dataset_id, name, num_samples, train_count, val_count, "
        "test_count, network_name, network_digest, sha256, created_at, "
        "(SELECT count(*) FROM training_jobs WHERE synthetic_dataset_id = synthetic_datasets.id) AS num_jobs "
        "FROM synthetic_datasets"
    )
    op.execute(
        "CREATE VIEW job_overview AS SELECT id AS job_id, run_id, job_name, status, stop_requested, "
        "synthetic_dataset_id AS dataset_id, parent_job_id, total_epochs, current_epoch, progress_percent, best_epoch, "
        "best_val_loss, train_loss, val_loss, val_rmse_m, error_message, created_at, started_at, finished_at "
        "FROM training_jobs"
    )
    op.execute(
        "CREATE VIEW epoch_overview AS SELECT training_job_id AS job_id, epoch, timestamp, train_loss, val_loss, "
        "train_rmse_m, val_rmse_m, val_rmse_good_geom_m, val_distance_p50_m, val_distance_p68_m, val_distance_p95_m, "
        "val_nees, val_coverage_68, val_coverage_95, learning_rate, gradient_norm, epoch_seconds FROM training_metrics"
    )
    op.execute(
        "CREATE VIEW model_overview AS SELECT id AS model_id, model_name, version, is_active, is_production, "
        "production_since, promoted, promotion_reason, model_architecture, epoch, "
        + of_json("metrics", *measured)
        + ", trained_by_job_id AS job_id, synthetic_dataset_id AS dataset_id, parent_model_id, network_name, "
        "network_digest, sha256, pytorch_model_location AS location, created_at FROM models"
    )
    promoted = "json_extract(metrics, '$.promoted')" if is_sqlite else "(metrics ->> 'promoted')::boolean"
    reason = "json_extract(metrics, '$.promotion_reason')" if is_sqlite else "metrics ->> 'promotion_reason'"
    headline = "json_extract(metrics, '$.headline')" if is_sqlite else "(metrics -> 'headline')"
    op.execute(
        "CREATE VIEW evaluation_overview AS SELECT id AS evaluation_id, training_job_id AS job_id, model_id, "
        f"synthetic_dataset_id AS dataset_id, epoch, {promoted} AS passed, {reason} AS verdict, "
        + of_json(headline, *measured)
        + ", checkpoint_sha256 AS sha256, evaluated_at FROM model_evaluations"
    )
