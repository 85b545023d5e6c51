"""Datasets, samples, jobs, metrics, models, evaluations.

Written out rather than taken from ``tables.py``, which will move on. Names of constraints follow the convention there.
"""

import sqlalchemy as sa
from alembic import op

from triangulation_pipeline.storage.columns import Json, ReceiverArray, UtcDateTime, UuidText

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "synthetic_datasets",
        sa.Column("id", UuidText, primary_key=True),
        sa.Column("name", sa.String(255), nullable=False, unique=True),
        sa.Column("num_samples", sa.BigInteger, nullable=False),
        sa.Column("train_count", sa.BigInteger, nullable=False),
        sa.Column("val_count", sa.BigInteger, nullable=False),
        sa.Column("test_count", sa.BigInteger, nullable=False),
        sa.Column("config", Json, nullable=False),
        sa.Column("quality_metrics", Json, nullable=False),
        sa.Column("network_name", sa.String(100), nullable=False),
        sa.Column("network_digest", sa.String(64), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("created_at", UtcDateTime, nullable=False),
    )
    op.create_table(
        "synthetic_training_samples",
        sa.Column("dataset_id", UuidText, sa.ForeignKey("synthetic_datasets.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("timestamp", UtcDateTime, primary_key=True),
        sa.Column("id", UuidText, nullable=False),
        sa.Column("sample_index", sa.BigInteger, nullable=False),
        sa.Column("tx_lat", sa.Double, nullable=False),
        sa.Column("tx_lon", sa.Double, nullable=False),
        sa.Column("tx_power_dbm", sa.REAL, nullable=False),
        sa.Column("frequency_hz", sa.BigInteger, nullable=False),
        sa.Column("hdop", sa.REAL),
        sa.Column("gdop", sa.REAL),
        sa.Column("crlb_m", sa.REAL),
        sa.Column("num_receivers", sa.Integer, nullable=False),
        sa.Column("split", sa.String(5), nullable=False),
        sa.Column("signal_present", ReceiverArray("|b1"), nullable=False),
        sa.Column("toa_present", ReceiverArray("|b1"), nullable=False),
        sa.Column("snr_db", ReceiverArray("<f4"), nullable=False),
        sa.Column("power_dbm", ReceiverArray("<f4"), nullable=False),
        sa.Column("frequency_offset_hz", ReceiverArray("<f4"), nullable=False),
        sa.Column("toa_ns", ReceiverArray("<f8"), nullable=False),
        sa.Column("toa_sigma_ns", ReceiverArray("<f4"), nullable=False),
        sa.CheckConstraint("split IN ('train', 'val', 'test')", name="split_known"),
        sqlite_with_rowid=False,
    )
    op.create_index(
        op.f("ix_synthetic_training_samples_dataset_id_split"), "synthetic_training_samples", ["dataset_id", "split"]
    )
    op.create_table(
        "training_jobs",
        sa.Column("id", UuidText, primary_key=True),
        sa.Column("job_name", sa.String(255), nullable=False),
        sa.Column("description", sa.Text, nullable=False),
        sa.Column("status", sa.String(9), nullable=False),
        sa.Column("config", Json, nullable=False),
        sa.Column("synthetic_dataset_id", UuidText, sa.ForeignKey("synthetic_datasets.id")),
        sa.Column("parent_job_id", UuidText, sa.ForeignKey("training_jobs.id")),
        sa.Column("total_epochs", sa.Integer, nullable=False),
        sa.Column("current_epoch", sa.Integer, nullable=False),
        sa.Column("progress_percent", sa.Double, nullable=False),
        sa.Column("best_epoch", sa.Integer),
        sa.Column("best_val_loss", sa.Double),
        sa.Column("train_loss", sa.Double),
        sa.Column("val_loss", sa.Double),
        sa.Column("val_rmse_m", sa.Double),
        sa.Column("state_location", sa.Text),
        sa.Column("state_sha256", sa.String(64)),
        sa.Column("error_message", sa.Text),
        sa.Column("created_at", UtcDateTime, nullable=False),
        sa.Column("started_at", UtcDateTime),
        sa.Column("finished_at", UtcDateTime),
        sa.CheckConstraint(
            "status IN ('pending', 'queued', 'running', 'completed', 'failed', 'cancelled', 'paused')",
            name="status_known",
        ),
    )
    op.create_table(
        "training_metrics",
        sa.Column("training_job_id", UuidText, sa.ForeignKey("training_jobs.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("epoch", sa.Integer, primary_key=True),
        sa.Column("timestamp", UtcDateTime, primary_key=True),
        sa.Column("train_loss", sa.Double, nullable=False),
        sa.Column("val_loss", sa.Double, nullable=False),
        sa.Column("train_rmse_m", sa.Double, nullable=False),
        sa.Column("val_rmse_m", sa.Double, nullable=False),
        sa.Column("val_rmse_good_geom_m", sa.Double),
        sa.Column("val_distance_p50_m", sa.Double, nullable=False),
        sa.Column("val_distance_p68_m", sa.Double, nullable=False),
        sa.Column("val_distance_p95_m", sa.Double, nullable=False),
        sa.Column("val_nees", sa.Double, nullable=False),
        sa.Column("val_coverage_68", sa.Double, nullable=False),
        sa.Column("val_coverage_95", sa.Double, nullable=False),
        sa.Column("learning_rate", sa.Double, nullable=False),
        sa.Column("gradient_norm", sa.Double, nullable=False),
        sa.Column("epoch_seconds", sa.Double, nullable=False),
    )
    op.create_table(
        "models",
        sa.Column("id", UuidText, primary_key=True),
        sa.Column("model_name", sa.String(255), nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("model_architecture", sa.String(100), nullable=False),
        sa.Column("pytorch_model_location", sa.Text, nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("onnx_model_location", sa.Text),
        sa.Column("onnx_sha256", sa.String(64)),
        sa.Column("epoch", sa.Integer, nullable=False),
        sa.Column("trained_by_job_id", UuidText, sa.ForeignKey("training_jobs.id"), nullable=False),
        sa.Column("synthetic_dataset_id", UuidText, sa.ForeignKey("synthetic_datasets.id"), nullable=False),
        sa.Column("network_name", sa.String(100), nullable=False),
        sa.Column("network_digest", sa.String(64), nullable=False),
        sa.Column("hyperparameters", Json, nullable=False),
        sa.Column("metrics", Json, nullable=False),
        sa.Column("is_active", sa.Boolean, nullable=False),
        sa.Column("is_production", sa.Boolean, nullable=False),
        sa.Column("promoted", sa.Boolean, nullable=False),
        sa.Column("promotion_reason", sa.Text, nullable=False),
        sa.Column("created_at", UtcDateTime, nullable=False),
        sa.UniqueConstraint("model_name", "version"),
        sa.UniqueConstraint("trained_by_job_id", "sha256"),
    )
    op.create_table(
        "model_evaluations",
        sa.Column("id", UuidText, primary_key=True),
        sa.Column("training_job_id", UuidText, sa.ForeignKey("training_jobs.id"), nullable=False),
        sa.Column("epoch", sa.Integer, nullable=False),
        sa.Column("checkpoint_sha256", sa.String(64), nullable=False),
        sa.Column("synthetic_dataset_id", UuidText, sa.ForeignKey("synthetic_datasets.id"), nullable=False),
        sa.Column("model_id", UuidText, sa.ForeignKey("models.id", ondelete="SET NULL")),
        sa.Column("metrics", Json, nullable=False),
        sa.Column("visualization_paths", Json, nullable=False),
        sa.Column("evaluated_at", UtcDateTime, nullable=False),
        sa.UniqueConstraint(
            "training_job_id", "checkpoint_sha256", "synthetic_dataset_id", name="uq_model_evaluations_checkpoint"
        ),
    )
