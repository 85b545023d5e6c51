"""Views for readers: dashboards, scripts, the command line. Their columns stay when the tables below them change."""

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

from triangulation_pipeline.model.spec import Architecture
from triangulation_pipeline.storage.columns import UtcDateTime, UuidText
from triangulation_pipeline.storage.engine import reading
from triangulation_pipeline.training.metrics import METRIC_DESCRIPTIONS
from triangulation_pipeline.validation import uuid_text

# Apart from the tables' metadata: Alembic would take them for tables.
_views = MetaData()


def _measured() -> list[Column[Any]]:
    return [
        Column("test_rmse_m", Double, comment="RMSE of the position on the test split, m."),
        Column(
            "test_rmse_good_geom_m",
            Double,
            comment="RMSE on the test samples with good geometry (GDOP below max_gdop of the job), m.",
        ),
        Column("test_p50_good_geom_m", Double, comment="Median error on the test samples with good geometry, m."),
        Column(
            "test_p95_good_geom_m",
            Double,
            comment="95th percentile of the error on the test samples with good geometry, m.",
        ),
        Column(
            "test_coverage_95_good_geom",
            Double,
            comment="Share of the true places within the predicted 95 % region, on good geometry.",
        ),
        Column(
            "huber_gauss_newton_p95_good_geom_m",
            Double,
            comment="95th percentile of the error of the Huber Gauss-Newton solver on the same samples, m.",
        ),
        Column("crlb_rms_good_geom_m", Double, comment="Root mean square of the Cramér-Rao bound on good geometry, m."),
    ]


# Names of the numbers of an evaluation that the views show; ``evaluation.report.HEADLINE`` has them all.
MEASURED = tuple(column.name for column in _measured())

dataset_overview = Table(
    "dataset_overview",
    _views,
    Column("dataset_id", UuidText, comment="Id of the dataset."),
    Column("name", Text, comment="Name of the dataset, unique."),
    Column("num_samples", BigInteger, comment="Number of samples in all splits."),
    Column("train_count", BigInteger, comment="Number of samples of the training split."),
    Column("val_count", BigInteger, comment="Number of samples of the validation split."),
    Column("test_count", BigInteger, comment="Number of samples of the test split."),
    Column("network_name", Text, comment="Name of the receiver network, or 'random layouts'."),
    Column(
        "network_digest", Text, comment="SHA-256 digest of the sites of the network, or of the rule of random layouts."
    ),
    Column("sha256", Text, comment="SHA-256 digest of the stored samples."),
    Column("created_at", UtcDateTime, comment="When the dataset was written."),
    Column("num_jobs", BigInteger, comment="Number of training jobs that used the dataset."),
)
job_overview = Table(
    "job_overview",
    _views,
    Column("job_id", UuidText, comment="Id of the job, which is the id of its first Dagster run."),
    Column("run_id", UuidText, comment="Id of the Dagster run that works on the job, or was the last to do so."),
    Column("job_name", Text, comment="The setting job_name of the training."),
    Column(
        "status", Text, comment="State of the job: pending, queued, running, paused, completed, failed or cancelled."
    ),
    Column(
        "stop_requested",
        Text,
        comment="The word pause or cancel from when somebody asks for it until it is done; else null.",
    ),
    Column("dataset_id", UuidText, comment="Id of the dataset that the job trains on; null until it is known."),
    Column(
        "parent_job_id",
        UuidText,
        comment="Id of the ended job that this one repeats with other settings; null if there is none.",
    ),
    Column("total_epochs", Integer, comment="Number of epochs in the settings."),
    Column("current_epoch", Integer, comment="Number of epochs that are done."),
    Column("progress_percent", Double, comment="Epochs done as a percentage of total_epochs; 100 for a completed job."),
    Column("best_epoch", Integer, comment="The epoch with the lowest validation loss so far."),
    Column("best_val_loss", Double, comment="Validation loss of best_epoch."),
    Column("train_loss", Double, comment="Training loss of the latest epoch."),
    Column("val_loss", Double, comment="Validation loss of the latest epoch."),
    Column("val_rmse_m", Double, comment="Validation RMSE of the latest epoch, m."),
    Column("error_message", Text, comment="Why the job failed, in one sentence."),
    Column("created_at", UtcDateTime, comment="When the job was first recorded."),
    Column("started_at", UtcDateTime, comment="When the job last began to run."),
    Column("finished_at", UtcDateTime, comment="When the job ended; null if it has not ended."),
)
epoch_overview = Table(
    "epoch_overview",
    _views,
    Column("job_id", UuidText, comment="Id of the job."),
    Column("epoch", Integer, comment="Number of the epoch, counted from 1; one row per epoch."),
    Column("timestamp", UtcDateTime, comment="When the epoch was recorded."),
    *(Column(name, Double, comment=comment) for name, comment in METRIC_DESCRIPTIONS.items()),
)
model_overview = Table(
    "model_overview",
    _views,
    Column("model_id", UuidText, comment="Id of this version of the model."),
    Column("model_name", Text, comment="Name of the model."),
    Column("version", Integer, comment="Number of the version, counted from 1 for each name."),
    Column("is_active", Boolean, comment="True for the newest version of its name."),
    Column("is_production", Boolean, comment="True for the version in use; at most one per name."),
    Column(
        "production_since", UtcDateTime, comment="When the version last went into production; null if it never did."
    ),
    Column("promoted", Boolean, comment="True if the version went into production by itself when it was registered."),
    Column("promotion_reason", Text, comment="Why it went into production by itself, or why not, in one sentence."),
    Column("model_architecture", Text, comment=f"Architecture of the model: {' or '.join(Architecture)}."),
    Column("epoch", Integer, comment="Number of the epoch that the weights are of."),
    *_measured(),
    Column(
        "job_id", UuidText, comment="Id of the job that trained it; the last one if several jobs gave equal weights."
    ),
    Column("dataset_id", UuidText, comment="Id of the dataset that it was trained on."),
    Column(
        "parent_model_id",
        UuidText,
        comment="Id of the registered model version from whose weights the training began; null if there was none.",
    ),
    Column("network_name", Text, comment="Name of the receiver network, or 'random layouts'."),
    Column(
        "network_digest", Text, comment="SHA-256 digest of the sites of the network, or of the rule of random layouts."
    ),
    Column("sha256", Text, comment="SHA-256 digest of the file best_model.pth."),
    Column("location", Text, comment="Path or URL of that file."),
    Column("created_at", UtcDateTime, comment="When the version was registered."),
    Column(
        "passed",
        Boolean,
        comment="True if it passed every check of a promotion; only such a version can be promoted by hand.",
    ),
    Column("network", Text, comment="Name of the network and the first characters of its digest, for display."),
    Column(
        "weights_digest",
        Text,
        comment="SHA-256 digest of all that decides its predictions; null in rows of older versions.",
    ),
)
evaluation_overview = Table(
    "evaluation_overview",
    _views,
    Column("evaluation_id", UuidText, comment="Id of the evaluation."),
    Column("job_id", UuidText, comment="Id of the job that trained the weights."),
    Column("model_id", UuidText, comment="Id of the model version that the weights are registered as; null before."),
    Column("dataset_id", UuidText, comment="Id of the dataset whose test split was used."),
    Column("epoch", Integer, comment="Number of the epoch that the weights are of."),
    Column("passed", Boolean, comment="True if all checks of the evaluation passed."),
    Column("verdict", Text, comment="Why the evaluation passed, or why not, in one sentence."),
    *_measured(),
    Column("sha256", Text, comment="SHA-256 digest of the file of the weights."),
    Column("evaluated_at", UtcDateTime, comment="When the evaluation was made."),
    Column("network_name", Text, comment="Name of the receiver network, or 'random layouts'."),
    Column(
        "network_digest", Text, comment="SHA-256 digest of the sites of the network, or of the rule of random layouts."
    ),
    Column("network", Text, comment="Name of the network and the first characters of its digest, for display."),
)
calibration_overview = Table(
    "calibration_overview",
    _views,
    Column("calibration_id", UuidText, comment="Id of the calibration, which has a row for each site."),
    Column("network_name", Text, comment="Name of the receiver network."),
    Column("network_digest", Text, comment="SHA-256 digest of the sites of the network."),
    Column("network", Text, comment="Name of the network and the first characters of its digest, for display."),
    Column("created_at", UtcDateTime, comment="When the calibration was stored."),
    Column("from_ns", BigInteger, comment="Time of its first measurement, ns of UTC since 1970."),
    Column("to_ns", BigInteger, comment="Time of its last measurement, ns of UTC since 1970."),
    Column("site", Text, comment="Name of the site."),
    Column("num_rows", BigInteger, comment="Number of measurements of the site that it rests on."),
    Column(
        "toa_bias_ns",
        Double,
        comment="How late its arrival times are, ns; null if nothing is known, as in the columns below.",
    ),
    Column("toa_bias_sigma_ns", Double, comment="Standard error of toa_bias_ns, ns."),
    Column("toa_sigma_factor", Double, comment="Noise of its arrival times, in units of what the receiver says of it."),
    Column("toa_sigma_factor_sigma", Double, comment="Standard error of toa_sigma_factor."),
    Column("drift_ns_per_s", Double, comment="How its bias grows, ns per second."),
    Column("drift_sigma_ns_per_s", Double, comment="Standard error of drift_ns_per_s."),
    Column("outlier_share", Double, comment="Share of arrival times that nothing explains, 0 to 1."),
    Column("outlier_share_sigma", Double, comment="Standard error of outlier_share."),
    Column("gain_offset_db", Double, comment="How much too high its levels are, dB."),
    Column("gain_offset_sigma_db", Double, comment="Standard error of gain_offset_db, dB."),
    Column(
        "site_group",
        Integer,
        comment="Number of its group: only biases of sites of one group can be compared.",
    ),
)
VIEWS = (dataset_overview, job_overview, epoch_overview, model_overview, evaluation_overview, calibration_overview)
_ORDER: dict[str, list[ColumnElement[Any]]] = {
    "dataset_overview": [dataset_overview.c.created_at.desc(), dataset_overview.c.dataset_id],
    "job_overview": [job_overview.c.created_at.desc(), job_overview.c.job_id],
    "epoch_overview": [epoch_overview.c.job_id, epoch_overview.c.epoch],
    "model_overview": [model_overview.c.model_name, model_overview.c.version.desc()],
    "evaluation_overview": [evaluation_overview.c.evaluated_at.desc(), evaluation_overview.c.evaluation_id],
    "calibration_overview": [
        calibration_overview.c.created_at.desc(),
        calibration_overview.c.calibration_id,
        calibration_overview.c.site,
    ],
}


def read_view(engine: Engine, view: Table, **equal: str) -> list[dict[str, Any]]:
    """The rows of a view in which each named column has the given value, ready for JSON: moments are ISO 8601 text in
    UTC. The newest row comes first; epochs and versions are in their order.

    Raises ValueError for an id that is not a UUID, and StorageError if the database cannot be read.
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
