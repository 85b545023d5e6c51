"""Views for readers: dashboards, scripts, the command line. Their columns stay when the tables below them move on."""

from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    Double,
    Engine,
    Integer,
    MetaData,
    Table,
    Text,
    select,
)

from triangulation_pipeline.storage.columns import UtcDateTime, UuidText
from triangulation_pipeline.storage.engine import reading
from triangulation_pipeline.storage.tables import METRIC_COLUMNS
from triangulation_pipeline.validation import uuid_text

# Apart from the tables' metadata: Alembic would take them for tables.
_views = MetaData()


def _measured() -> list[Column[Any]]:
    return [
        Column("test_rmse_m", Double, comment="RMSE on the test split, m"),
        Column("test_rmse_good_geom_m", Double, comment="the same on good geometry (GDOP below the job's max_gdop), m"),
        Column("test_p50_good_geom_m", Double, comment="median error on good geometry, m"),
        Column("test_p95_good_geom_m", Double, comment="95th percentile of the error on good geometry, m"),
        Column("test_coverage_95_good_geom", Double, comment="share of errors within the 95 % ellipse, good geometry"),
        Column("huber_gauss_newton_p95_good_geom_m", Double, comment="the classical solver's 95th percentile, m"),
        Column("crlb_rms_good_geom_m", Double, comment="rms of the Cramér-Rao bound, good geometry, m"),
    ]


dataset_overview = Table(
    "dataset_overview",
    _views,
    Column("dataset_id", UuidText, comment="id of the dataset"),
    Column("name", Text, comment="its name, unique"),
    Column("num_samples", BigInteger, comment="samples in all"),
    Column("train_count", BigInteger, comment="samples of the training split"),
    Column("val_count", BigInteger, comment="samples of the validation split"),
    Column("test_count", BigInteger, comment="samples of the test split"),
    Column("network_name", Text, comment="name of the receiver network"),
    Column("network_digest", Text, comment="SHA-256 of the network's sites"),
    Column("sha256", Text, comment="SHA-256 over the stored samples"),
    Column("created_at", UtcDateTime, comment="when it was written"),
    Column("num_jobs", BigInteger, comment="training jobs that used it"),
)
job_overview = Table(
    "job_overview",
    _views,
    Column("job_id", UuidText, comment="id of the job: that of its first Dagster run"),
    Column("run_id", UuidText, comment="the Dagster run that works on it, or did last"),
    Column("job_name", Text, comment="job_name of the training settings"),
    Column("status", Text, comment="pending, queued, running, paused, completed, failed or cancelled"),
    Column("stop_requested", Text, comment="pause or cancel where somebody asked for it, until it is done"),
    Column("dataset_id", UuidText, comment="what it trains on; null before it is known"),
    Column("parent_job_id", UuidText, comment="the ended job that it repeats with other settings, if any"),
    Column("total_epochs", Integer, comment="epochs asked for"),
    Column("current_epoch", Integer, comment="epochs done"),
    Column("progress_percent", Double, comment="their share, 100 when it is completed"),
    Column("best_epoch", Integer, comment="epoch of the lowest validation loss so far"),
    Column("best_val_loss", Double, comment="that loss"),
    Column("train_loss", Double, comment="of the latest epoch"),
    Column("val_loss", Double, comment="of the latest epoch"),
    Column("val_rmse_m", Double, comment="of the latest epoch, m"),
    Column("error_message", Text, comment="why it failed, in a sentence"),
    Column("created_at", UtcDateTime, comment="when it was first known"),
    Column("started_at", UtcDateTime, comment="when it last began to run"),
    Column("finished_at", UtcDateTime, comment="when it ended, null while it has not"),
)
epoch_overview = Table(
    "epoch_overview",
    _views,
    Column("job_id", UuidText, comment="the job"),
    Column("epoch", Integer, comment="from 1 on, one row each"),
    Column("timestamp", UtcDateTime, comment="when it was recorded"),
    *(Column(name, Double, comment="as in training_metrics") for name in METRIC_COLUMNS),
)
model_overview = Table(
    "model_overview",
    _views,
    Column("model_id", UuidText, comment="id of the version"),
    Column("model_name", Text, comment="its name"),
    Column("version", Integer, comment="from 1 on for each name"),
    Column("is_active", Boolean, comment="the newest version of its name"),
    Column("is_production", Boolean, comment="the one in use; at most one a name"),
    Column("production_since", UtcDateTime, comment="when it last went into production; null = it never did"),
    Column("promoted", Boolean, comment="it went into production by itself when it was registered"),
    Column("promotion_reason", Text, comment="why or why not, in a sentence"),
    Column("model_architecture", Text, comment="triangulation or regression"),
    Column("epoch", Integer, comment="epoch of the weights"),
    *_measured(),
    Column("job_id", UuidText, comment="the job that trained it; of several with equal weights the last"),
    Column("dataset_id", UuidText, comment="what it was trained on"),
    Column("parent_model_id", UuidText, comment="the model it was fine-tuned from, if any"),
    Column("network_name", Text, comment="name of the receiver network"),
    Column("network_digest", Text, comment="SHA-256 of the network's sites"),
    Column("sha256", Text, comment="digest of best_model.pth"),
    Column("location", Text, comment="where that file lies"),
    Column("created_at", UtcDateTime, comment="when it was registered"),
    Column("passed", Boolean, comment="it passed every check of a promotion; only such can be promoted by hand"),
    Column("network", Text, comment="the network for a reader: its name and the beginning of its digest"),
    Column("weights_digest", Text, comment="SHA-256 of what decides its predictions; null in older rows"),
)
evaluation_overview = Table(
    "evaluation_overview",
    _views,
    Column("evaluation_id", UuidText, comment="id of the evaluation"),
    Column("job_id", UuidText, comment="the job that trained the weights"),
    Column("model_id", UuidText, comment="the version they are registered as; null before"),
    Column("dataset_id", UuidText, comment="whose test split it is on"),
    Column("epoch", Integer, comment="epoch of the weights"),
    Column("passed", Boolean, comment="whether accuracy, calibration and the comparison with the solver passed"),
    Column("verdict", Text, comment="why or why not, in a sentence"),
    *_measured(),
    Column("sha256", Text, comment="digest of the weights' file"),
    Column("evaluated_at", UtcDateTime, comment="when"),
    Column("network_name", Text, comment="name of the receiver network"),
    Column("network_digest", Text, comment="SHA-256 of the network's sites"),
    Column("network", Text, comment="the network for a reader: its name and the beginning of its digest"),
)
VIEWS = (dataset_overview, job_overview, epoch_overview, model_overview, evaluation_overview)
_ORDER: dict[str, list[ColumnElement[Any]]] = {
    "dataset_overview": [dataset_overview.c.created_at.desc(), dataset_overview.c.dataset_id],
    "job_overview": [job_overview.c.created_at.desc(), job_overview.c.job_id],
    "epoch_overview": [epoch_overview.c.job_id, epoch_overview.c.epoch],
    "model_overview": [model_overview.c.model_name, model_overview.c.version.desc()],
    "evaluation_overview": [evaluation_overview.c.evaluated_at.desc(), evaluation_overview.c.evaluation_id],
}


def read_view(engine: Engine, view: Table, **equal: str) -> list[dict[str, Any]]:
    """The rows of a view in which each named column has the given value, ready for JSON: moments as ISO 8601 text in
    UTC. Newest first, epochs and versions in their order.

    Raises ValueError for an id that is no UUID and StorageError where the database cannot be read.
    """
    equal = {name: uuid_text(name, value) if name.endswith("_id") else value for name, value in equal.items()}
    statement = select(view).where(*(view.c[name] == value for name, value in equal.items()))
    statement = statement.order_by(*_ORDER[view.name])
    with reading(engine) as connection:
        rows = connection.execute(statement).mappings().all()
    return [
        {
            name: value.isoformat(timespec="milliseconds") if hasattr(value, "isoformat") else value
            for name, value in row.items()
        }
        for row in rows
    ]
