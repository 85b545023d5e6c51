"""The tables. Every change here comes with a migration; a test holds both to the same schema."""

from enum import StrEnum
from typing import Any

from sqlalchemy import (
    REAL,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.types import TypeEngine

from triangulation_pipeline.calibration_file import NUMBERS
from triangulation_pipeline.measurements import RECEIVER_DTYPES, TRANSMISSION_DTYPES
from triangulation_pipeline.samples import SAMPLE_DTYPES, Split
from triangulation_pipeline.storage.columns import Json, ReceiverArray, UtcDateTime, UuidText
from triangulation_pipeline.training.metrics import METRIC_COLUMNS, OPTIONAL_METRICS


class Stop(StrEnum):
    """What a running job can be asked to do."""

    pause = "pause"
    cancel = "cancel"


class JobStatus(StrEnum):
    """The states of a training job."""

    pending = "pending"
    queued = "queued"
    running = "running"
    completed = "completed"
    failed = "failed"
    cancelled = "cancelled"
    paused = "paused"


# Columns of one number per sample. Time has its own column, and the altitude is the scenario's.
NUMBER_DTYPES = SAMPLE_DTYPES | {"frequency_hz": TRANSMISSION_DTYPES["frequency_hz"]}
# Null if Samples has NaN.
OPTIONAL_SAMPLE_COLUMNS = frozenset({"hdop", "gdop", "crlb_m"})

_SCALAR_TYPES: dict[str, type[TypeEngine[Any]]] = {"<i8": BigInteger, "<f8": Double, "<f4": REAL}


def _one_of(column: str, names: list[str]) -> CheckConstraint:
    return CheckConstraint(f"{column} IN ({', '.join(repr(str(name)) for name in names)})", name=f"{column}_known")


metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    }
)

synthetic_datasets = Table(
    "synthetic_datasets",
    metadata,
    Column("id", UuidText, primary_key=True),
    Column("name", String(255), nullable=False, unique=True),
    Column("num_samples", BigInteger, nullable=False),
    Column("train_count", BigInteger, nullable=False),
    Column("val_count", BigInteger, nullable=False),
    Column("test_count", BigInteger, nullable=False),
    Column("config", Json, nullable=False),
    Column("quality_metrics", Json, nullable=False),
    Column("network_name", String(100), nullable=False),
    Column("network_digest", String(64), nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("digest_columns", Json),  # what sha256 covers; migrations fill it in for rows of older versions
)

# Clustered by its key on SQLite too, so that reading in index order is one sweep.
synthetic_training_samples = Table(
    "synthetic_training_samples",
    metadata,
    Column("dataset_id", UuidText, ForeignKey("synthetic_datasets.id", ondelete="CASCADE"), primary_key=True),
    Column("timestamp", UtcDateTime, primary_key=True),
    Column("id", UuidText, nullable=False),
    *(
        Column(name, _SCALAR_TYPES[dtype], nullable=name in OPTIONAL_SAMPLE_COLUMNS)
        for name, dtype in NUMBER_DTYPES.items()
    ),
    Column("num_detections", Integer, nullable=False),
    Column("split", String(5), nullable=False),
    *(Column(name, ReceiverArray(dtype), nullable=False) for name, dtype in RECEIVER_DTYPES.items()),
    _one_of("split", [split.name for split in Split]),
    Index(None, "dataset_id", "split"),
    sqlite_with_rowid=False,
)

training_jobs = Table(
    "training_jobs",
    metadata,
    Column("id", UuidText, primary_key=True),  # the Dagster run's id
    Column("job_name", String(255), nullable=False),
    Column("description", Text, nullable=False),
    Column("status", String(9), nullable=False),
    Column("config", Json, nullable=False),
    Column("synthetic_dataset_id", UuidText, ForeignKey("synthetic_datasets.id")),
    Column("parent_job_id", UuidText, ForeignKey("training_jobs.id")),
    Column("total_epochs", Integer, nullable=False),
    Column("current_epoch", Integer, nullable=False),
    Column("progress_percent", Double, nullable=False),
    Column("best_epoch", Integer),
    Column("best_val_loss", Double),
    Column("train_loss", Double),
    Column("val_loss", Double),
    Column("val_rmse_m", Double),
    Column("state_location", Text),
    Column("state_sha256", String(64)),
    Column("error_message", Text),
    Column("created_at", UtcDateTime, nullable=False),
    Column("started_at", UtcDateTime),
    Column("finished_at", UtcDateTime),
    Column("run_id", UuidText),  # the Dagster run that works on it, or was the last to do so
    Column("stop_requested", String(6)),
    Column("heartbeats", BigInteger, nullable=False, server_default=text("0")),  # rises while its worker is alive
    _one_of("status", list(JobStatus)),
    _one_of("stop_requested", list(Stop)),
    Index(None, "run_id"),
    Index(None, "status"),
)

# The keys of a hypertable must contain the time column, so (job, epoch) cannot be unique here: the writer ensures it.
training_metrics = Table(
    "training_metrics",
    metadata,
    Column("training_job_id", UuidText, ForeignKey("training_jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("epoch", Integer, primary_key=True),
    Column("timestamp", UtcDateTime, primary_key=True),
    *(Column(name, Double, nullable=name in OPTIONAL_METRICS) for name in METRIC_COLUMNS),
)

models = Table(
    "models",
    metadata,
    Column("id", UuidText, primary_key=True),
    Column("model_name", String(255), nullable=False),
    Column("version", Integer, nullable=False),
    Column("model_architecture", String(100), nullable=False),
    Column("pytorch_model_location", Text, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("onnx_model_location", Text),
    Column("onnx_sha256", String(64)),
    Column("epoch", Integer, nullable=False),
    Column("trained_by_job_id", UuidText, ForeignKey("training_jobs.id"), nullable=False),
    Column("synthetic_dataset_id", UuidText, ForeignKey("synthetic_datasets.id"), nullable=False),
    Column("network_name", String(100), nullable=False),
    Column("network_digest", String(64), nullable=False),
    Column("hyperparameters", Json, nullable=False),
    Column("metrics", Json, nullable=False),
    Column("is_active", Boolean, nullable=False),
    Column("is_production", Boolean, nullable=False),
    Column("promoted", Boolean, nullable=False),
    Column("promotion_reason", Text, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("parent_model_id", UuidText, ForeignKey("models.id")),
    Column("production_since", UtcDateTime),
    Column("passed", Boolean, nullable=False, server_default=text("false")),
    Column("weights_digest", String(64)),  # null in rows that an older version wrote
    UniqueConstraint("model_name", "version"),
    UniqueConstraint("trained_by_job_id", "sha256"),
    Index("uq_models_model_name_weights_digest", "model_name", "weights_digest", unique=True),
    *(
        Index(
            f"uq_models_model_name_{mark}",
            "model_name",
            unique=True,
            sqlite_where=text(mark),
            postgresql_where=text(mark),
        )
        for mark in ("is_active", "is_production")
    ),
)

model_evaluations = Table(
    "model_evaluations",
    metadata,
    Column("id", UuidText, primary_key=True),
    Column("training_job_id", UuidText, ForeignKey("training_jobs.id"), nullable=False),
    Column("epoch", Integer, nullable=False),
    Column("checkpoint_sha256", String(64), nullable=False),
    Column("synthetic_dataset_id", UuidText, ForeignKey("synthetic_datasets.id"), nullable=False),
    Column("model_id", UuidText, ForeignKey("models.id", ondelete="SET NULL")),
    Column("metrics", Json, nullable=False),
    Column("visualization_paths", Json, nullable=False),
    Column("evaluated_at", UtcDateTime, nullable=False),
    Column("weights_digest", String(64)),  # null in rows that an older version wrote
    # Two runs of equal configuration may well end in equal bytes: each keeps its own evaluation.
    UniqueConstraint(
        "training_job_id", "checkpoint_sha256", "synthetic_dataset_id", name="uq_model_evaluations_checkpoint"
    ),
)

# A calibration is the rows of one id: a row for each site. A number that is not known is null, with its sigma.
site_calibrations = Table(
    "site_calibrations",
    metadata,
    Column("id", UuidText, primary_key=True),
    Column("site", String(100), primary_key=True),
    Column("network_name", String(100), nullable=False),
    Column("network_digest", String(64), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("from_ns", BigInteger),
    Column("to_ns", BigInteger),
    *(Column(name, Double, nullable=False) for name in ("lat", "lon", "altitude_m")),
    Column("num_rows", BigInteger, nullable=False),
    Column("site_group", Integer, nullable=False),
    *(Column(column, Double) for name, (sigma, _, _) in NUMBERS.items() for column in (name, sigma)),
    Index(None, "network_digest", "created_at"),
)
