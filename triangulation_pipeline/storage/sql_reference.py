"""The page on the views, ``docs/sql.md``: ``python -m triangulation_pipeline.storage.sql_reference > docs/sql.md``."""

from typing import Any

from sqlalchemy import Column

from triangulation_pipeline.evaluation.report import HEADLINE
from triangulation_pipeline.storage.columns import UtcDateTime
from triangulation_pipeline.storage.views import VIEWS

# Each runs unchanged on SQLite and on PostgreSQL; a test runs them all.
EXAMPLES = {
    "The model in production, and what it measured": """\
SELECT model_name, version, network, test_rmse_m, test_p95_good_geom_m, crlb_rms_good_geom_m, production_since, location
FROM model_overview
WHERE is_production
ORDER BY model_name;""",
    "The jobs that wait or run": """\
SELECT job_id, job_name, status, current_epoch, total_epochs, val_rmse_m, stop_requested
FROM job_overview
WHERE status IN ('pending', 'queued', 'running')
ORDER BY created_at;""",
    "The learning curve of the job that started last": """\
SELECT epoch, train_loss, val_loss, val_rmse_m, val_rmse_good_geom_m
FROM epoch_overview
WHERE job_id = (SELECT job_id FROM job_overview WHERE started_at IS NOT NULL ORDER BY started_at DESC LIMIT 1)
ORDER BY epoch;""",
    "The best epoch of each job, by validation RMSE": """\
SELECT j.job_name, j.status, e.job_id, e.epoch, e.val_rmse_m
FROM epoch_overview AS e
JOIN job_overview AS j ON j.job_id = e.job_id
WHERE e.val_rmse_m = (SELECT MIN(b.val_rmse_m) FROM epoch_overview AS b WHERE b.job_id = e.job_id)
ORDER BY e.val_rmse_m;""",
    "What each dataset led to": """\
SELECT d.name, d.num_samples, d.num_jobs, COUNT(m.model_id) AS num_models, MIN(m.test_rmse_m) AS best_test_rmse_m
FROM dataset_overview AS d
LEFT JOIN model_overview AS m ON m.dataset_id = d.dataset_id
GROUP BY d.dataset_id, d.name, d.num_samples, d.num_jobs
ORDER BY best_test_rmse_m;""",
    "Why versions did not go into production": """\
SELECT model_name, version, promotion_reason
FROM model_overview
WHERE NOT promoted
ORDER BY model_name, version;""",
    "How the clock of each site changed from calibration to calibration": """\
SELECT network, site, to_ns, toa_bias_ns, toa_bias_sigma_ns
FROM calibration_overview
ORDER BY network, site, to_ns;""",
}

_INTRODUCTION = """\
# Reading the database

Dashboards and scripts read the database by these views: their columns stay when the tables below them change. With the
default settings, `sqlite3 .dagster/triangulation.db` opens the database; on PostgreSQL the views are in the schema
`triangulation` (`SET search_path TO triangulation`). A moment is `timestamptz` on PostgreSQL. On SQLite it is ISO 8601
text in UTC, so that the order of texts is the order of moments. With `--json`, `triangulation datasets`, `jobs`,
`metrics`, `models`, `evaluations` and `calibrations` print the same columns.

This page is made by `python -m triangulation_pipeline.storage.sql_reference > docs/sql.md`.
"""

_HEADLINE = """\
## Numbers of an evaluation

The column `metrics` of the table `models` holds these numbers as JSON, with the metrics of the epoch; the column
`metrics` of `model_evaluations` holds them below `headline`. A number without data is null. A GDOP below the job's
`max_gdop` is good geometry. The unit 1 stands for a number without a unit.

| on all test rows | on rows with good geometry | unit | meaning |
|---|---|---|---|
"""


def sql_reference() -> str:
    """The views with their columns, and examples, as Markdown."""
    parts = [_INTRODUCTION]
    for view in VIEWS:
        rows = [f"| `{column.name}` | {_type(column)} | {column.comment} |" for column in view.columns]
        parts.append("\n".join([f"## {view.name}", "", "| column | type | meaning |", "|---|---|---|", *rows, ""]))
    parts.append(_HEADLINE + "\n".join(_headline_rows()) + "\n")
    parts.append("## Examples\n\nThey run unchanged on both databases.\n")
    parts += [f"{title}:\n\n```sql\n{statement}\n```\n" for title, statement in EXAMPLES.items()]
    return "\n".join(parts)


def _headline_rows() -> list[str]:
    return [
        f"| `{number.name}` | `{number.good_geometry_name}` | {number.unit} | {number.description} |"
        for number in HEADLINE
    ]


def _type(column: Column[Any]) -> str:
    if isinstance(column.type, UtcDateTime):
        return "moment"
    return "UUID" if column.name.endswith("_id") else column.type.__visit_name__.lower().replace("_", " ")


if __name__ == "__main__":
    print(sql_reference(), end="")
