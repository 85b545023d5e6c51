"""The command line: ``triangulation run | models | datasets | metrics | network``."""

import json
import logging
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import yaml
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from triangulation_pipeline.network import NORTH_WEST_ITALY, random_network
from triangulation_pipeline.storage.errors import StorageError

JOB = "train_locator"


@contextmanager
def sentences() -> Iterator[None]:
    """Bad input and storage faults end with their one sentence and exit code 1."""
    try:
        yield
    except (ValueError, StorageError) as error:
        raise click.ClickException(str(error)) from None


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="triangulation-pipeline")
def main() -> None:
    """From the description of a receiver network to a registered, calibrated locator of transmitters."""


@main.command()
@click.option(
    "--config",
    "config_file",
    type=click.Path(exists=True, dir_okay=False, resolve_path=True, path_type=Path),
    help="Dagster run config (YAML): what differs from the defaults.",
)
@click.option("--json", "as_json", is_flag=True, help="The results as JSON on standard output.")
def run(config_file: Path | None, as_json: bool) -> None:
    """Materialise everything: network, dataset, splits, model, evaluation, registry."""
    with sentences():
        run_config = {} if config_file is None else read_run_config(config_file)
        _use_home()
        from triangulation_pipeline.defs.resources import OpenStorage

        _check(run_config)
        storage = OpenStorage()
        storage.open()
        console = Console(stderr=as_json)
        run_id = _materialize(run_config, console)
        results = _results(storage, run_id)
    if as_json:
        click.echo(json.dumps(results, indent=2, allow_nan=False))
    else:
        _show_results(console, results)


@main.command()
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def models(as_json: bool) -> None:
    """The registered models, newest first."""
    from triangulation_pipeline.storage.registry import list_models

    rows = [
        {
            "model_name": model.model_name,
            "version": model.version,
            "is_production": model.is_production,
            "promoted": model.promoted,
            "epoch": model.epoch,
            "test_rmse_m": model.metrics["test_rmse_m"],
            "test_rmse_good_geom_m": model.metrics["test_rmse_good_geom_m"],
            "created_at": model.created_at.isoformat(timespec="seconds"),
            "job_id": model.trained_by_job_id,
            "dataset_id": model.synthetic_dataset_id,
            "sha256": model.sha256,
            "location": model.pytorch_model_location,
        }
        for model in _read(list_models)
    ]
    _show_rows(rows, as_json, hidden=("dataset_id", "sha256", "location"))


@main.command()
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def datasets(as_json: bool) -> None:
    """The datasets, newest first."""
    from triangulation_pipeline.storage.datasets import list_datasets

    rows = [
        {
            "dataset_id": dataset.id,
            "name": dataset.name,
            "num_samples": dataset.num_samples,
            "train": dataset.train_count,
            "val": dataset.val_count,
            "test": dataset.test_count,
            "created_at": dataset.created_at.isoformat(timespec="seconds"),
            "sha256": dataset.sha256,
        }
        for dataset in _read(list_datasets)
    ]
    _show_rows(rows, as_json, hidden=("sha256",))


@main.command()
@click.argument("job_id")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def metrics(job_id: str, as_json: bool) -> None:
    """The epochs of the training job JOB_ID (the id of its Dagster run)."""
    from triangulation_pipeline.storage.jobs import read_metrics

    frame = _read(lambda engine: read_metrics(engine, job_id))
    rows = frame.astype(object).where(frame.notna(), None).to_dict("records")
    _show_rows(
        rows,
        as_json,
        hidden=("val_distance_p50_m", "val_distance_p68_m", "val_coverage_68", "gradient_norm", "train_rmse_m"),
    )


@main.command()
@click.option("--random-sites", type=click.IntRange(3, 64), help="A random network of so many sites instead.")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), help="Of the random network, 0 if left out.")
def network(random_sites: int | None, seed: int | None) -> None:
    """Print a network file: the default network, to be edited, or a random one."""
    if seed is not None and random_sites is None:
        raise click.UsageError("--seed goes with --random-sites")
    described = NORTH_WEST_ITALY if random_sites is None else random_network(random_sites, seed or 0)
    document = described.model_dump(mode="json", exclude_none=True)
    click.echo(yaml.safe_dump(document, sort_keys=False, allow_unicode=True), nl=False)


def read_run_config(path: Path) -> dict[str, Any]:
    """Dagster run config from YAML. Raises ValueError with one sentence."""
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path} cannot be read as YAML: {' '.join(str(error).split())}") from None
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise ValueError(
            f"{path} must hold Dagster run config, as in 'ops: {{trained_model: {{config: {{epochs: 5}}}}}}'"
        )
    return document


def _use_home() -> None:
    """Works in ``DAGSTER_HOME``, or in the current folder where that is the project's root."""
    if not os.environ.get("DAGSTER_HOME"):
        if not Path("dagster.yaml").is_file():
            raise ValueError(
                "DAGSTER_HOME is not set and the current folder has no dagster.yaml; set it, or change folder"
            )
        os.environ["DAGSTER_HOME"] = str(Path.cwd())
    home = Path(os.environ["DAGSTER_HOME"])
    if not home.is_absolute() or not home.is_dir():
        raise ValueError(f"DAGSTER_HOME must be the absolute path of a folder, got {str(home)!r}")
    # dagster.yaml names its places relative to the folder that Dagster's processes are started in: this one.
    os.chdir(home)


def _read(query: Any) -> Any:
    with sentences():
        _use_home()
        from triangulation_pipeline.storage.engine import open_database
        from triangulation_pipeline.storage.settings import read_settings

        return query(open_database(read_settings().database_url))


def _check(run_config: Mapping[str, Any]) -> None:
    """Refuses bad settings before a run is made: names, types and choices first, then ranges and contradictions."""
    import dagster as dg

    from triangulation_pipeline.definitions import defs
    from triangulation_pipeline.defs.config import check_run_config

    try:
        dg.validate_run_config(defs.resolve_job_def(JOB), run_config)
    except dg.DagsterInvalidConfigError as error:
        found = (_config_fault(" ".join(fault.message.split())) for fault in error.errors)
        raise ValueError("; ".join(found)) from None
    check_run_config(run_config)


def _config_fault(message: str) -> str:
    """Dagster's finding without its list of the whole schema, and without the traceback of an unset variable."""
    if unset := re.match(r"Post processing at path (\S+) of original value \{'env': '(\w+)'\} failed", message):
        return f"{unset[1]}: the environment variable {unset[2]} is not set"
    return re.split(r"[.:,]? Expected:? [\"'{]", message)[0]


def _materialize(run_config: Mapping[str, Any], console: Console) -> str:
    """Runs the whole graph in this process; gives the run's id. Raises ValueError with a failed step's sentence."""

    from triangulation_pipeline.definitions import defs

    # Dagster's own lines go to the run's log, as ever; the terminal gets ours.
    quiet = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
    with _instance() as instance, _progress(console):
        result = defs.resolve_job_def(JOB).execute_in_process(
            instance=instance, run_config={**quiet, **run_config}, raise_on_error=False
        )
    if not result.success:
        raise ValueError(_failure(result))
    return result.run_id


def _instance() -> Any:
    """Dagster's instance. The first process makes its SQLite files alone: of two that do so at once Dagster lets one
    fail."""
    import dagster as dg
    from filelock import FileLock

    try:
        Path(".dagster").mkdir(exist_ok=True)
        with FileLock(Path(".dagster") / "opening.lock"):
            return dg.DagsterInstance.get()
    except OSError as error:
        raise ValueError(f"DAGSTER_HOME ({Path.cwd()}) cannot be written: {error.strerror}") from None


def _failure(result: Any) -> str:
    for check in result.get_asset_check_evaluations():
        if not check.passed and check.blocking:
            return f"{check.check_name}: {check.description}"
    for event in result.all_events:
        if event.is_step_failure:
            data = event.event_specific_data
            if data.user_failure_data is not None and data.user_failure_data.description:
                return f"{event.step_key}: {data.user_failure_data.description}"
            cause = data.error
            while cause.cause is not None:
                cause = cause.cause
            return f"{event.step_key}: {' '.join(cause.message.split())}"
    return f"run {result.run_id} failed"


class _ProgressHandler(logging.Handler):
    """Prints our log lines above the bar and moves the bar with the epochs."""

    def __init__(self, progress: Progress) -> None:
        super().__init__(logging.INFO)
        self.progress = progress
        self.task = progress.add_task("working", total=None)

    def emit(self, record: logging.LogRecord) -> None:
        self.progress.console.print(record.getMessage(), highlight=False, markup=False, soft_wrap=True)
        if hasattr(record, "epochs_done") and hasattr(record, "epochs_total"):
            self.progress.update(
                self.task, description="training", completed=record.epochs_done, total=record.epochs_total
            )
        else:
            self.progress.update(self.task, description="working", completed=0, total=None)


@contextmanager
def _progress(console: Console) -> Iterator[None]:
    logger = logging.getLogger("triangulation_pipeline")
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        handler = _ProgressHandler(progress)
        level, propagate = logger.level, logger.propagate
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False
        try:
            yield
        finally:
            logger.removeHandler(handler)
            logger.setLevel(level)
            logger.propagate = propagate


def _results(storage: Any, run_id: str) -> dict[str, Any]:
    """What the final page shows."""
    from triangulation_pipeline.storage.registry import get_model_of_job

    model = get_model_of_job(storage.engine, run_id)
    return {
        "model_name": model.model_name,
        "version": model.version,
        "promoted": model.promoted,
        "promotion_reason": model.promotion_reason,
        "job_id": run_id,
        "dataset_id": model.synthetic_dataset_id,
        "metrics": model.metrics,
        "checkpoint": model.pytorch_model_location,
        "sha256": model.sha256,
        "database": storage.engine.url.render_as_string(hide_password=True),
        "object_store": str(storage.settings.object_store),
    }


def _show_results(console: Console, results: Mapping[str, Any]) -> None:
    values = results["metrics"]

    def metres(name: str) -> str:
        value = values[name]
        return "none" if value is None else f"{value:,.1f} m"

    def share(name: str) -> str:
        value = values[name]
        return "none" if value is None else f"{value:.1%}"

    def row(label: str, name: str) -> None:
        if (values[f"{name}_m"], values[f"{name}_good_geom_m"]) != (None, None):
            page.add_row(label, metres(f"{name}_m"), metres(f"{name}_good_geom_m"))

    page = Table(title=f"{results['model_name']} version {results['version']}", title_justify="left", show_header=True)
    page.add_column("error on")
    page.add_column("all rows", justify="right")
    page.add_column("good geometry", justify="right")
    for label, name in (
        ("validation RMSE", "val_rmse"),
        ("test RMSE", "test_rmse"),
        ("test median", "test_p50"),
        ("test p95", "test_p95"),
        ("Cramér-Rao bound, rms", "crlb_rms"),
        ("Huber Gauss-Newton RMSE", "huber_gauss_newton_rmse"),
        ("Huber Gauss-Newton p95", "huber_gauss_newton_p95"),
        ("mixture ML RMSE", "mixture_ml_rmse"),
        ("mixture ML p95", "mixture_ml_p95"),
        ("levels' posterior mean RMSE", "level_posterior_mean_rmse"),
        ("power-weighted centroid RMSE", "power_weighted_centroid_rmse"),
    ):
        row(label, name)
    if missing := values["huber_gauss_newton_rows_without_fix"]:
        page.add_row(
            "rows no solver locates", str(missing), str(values["huber_gauss_newton_rows_without_fix_good_geom"])
        )
    page.add_row("95 % ellipse covers", share("test_coverage_95"), share("test_coverage_95_good_geom"))
    console.print()
    console.print(page)
    console.print(results["promotion_reason"], highlight=False, markup=False, soft_wrap=True)
    for label in ("checkpoint", "database", "object_store", "job_id"):
        console.print(f"{label.replace('_', ' '):13} {results[label]}", highlight=False, markup=False, soft_wrap=True)


def _show_rows(rows: list[dict[str, Any]], as_json: bool, hidden: tuple[str, ...]) -> None:
    if as_json:
        click.echo(json.dumps(rows, indent=2, allow_nan=False))
        return
    if not rows:
        click.echo("none")
        return
    table = Table(show_edge=False)
    shown = [name for name in rows[0] if name not in hidden]
    for name in shown:
        table.add_column(name, justify="right" if isinstance(rows[0][name], int | float) else "left", overflow="fold")
    for row in rows:
        table.add_row(*(escape(_cell(row[name])) for name in shown))
    # A pipe or a file gets whole lines.
    Console(width=None if sys.stdout.isatty() else 200).print(table)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.5g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
