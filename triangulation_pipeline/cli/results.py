"""The final page of ``triangulation run``."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from triangulation_pipeline.cli.tables import plain
from triangulation_pipeline.defs.resources import Storage
from triangulation_pipeline.evaluation.estimators import BEST_FIRST
from triangulation_pipeline.evaluation.reference import LABEL
from triangulation_pipeline.evaluation.report import HEADLINE_NAMES
from triangulation_pipeline.evaluation.summary import COVERAGE_LEVELS, Evaluation
from triangulation_pipeline.storage.evaluations import get_evaluation
from triangulation_pipeline.storage.registry import get_model_of_job
from triangulation_pipeline.storage.views import evaluation_overview, read_view

BOUND_NOTE = (
    "The bound holds for estimators without prior knowledge. Its RMSE is dominated by a few rows of the worst "
    "geometry, and can exceed that of a model, which has learned the area."
)


def results_of(storage: Storage, run_id: str) -> dict[str, Any]:
    """The values on the final page of a run."""
    model = get_model_of_job(storage.engine, run_id)
    newest, *_ = read_view(storage.engine, evaluation_overview, job_id=run_id)
    found = Evaluation.model_validate(get_evaluation(storage.engine, newest["evaluation_id"]).metrics)
    return {
        "model_name": model.model_name,
        "version": model.version,
        "network": model.network,
        "network_digest": model.network_digest,
        "promoted": model.promoted,
        "promotion_reason": model.promotion_reason,
        "job_id": run_id,
        "dataset_id": model.synthetic_dataset_id,
        # What an older version registered lacks numbers that came later.
        "metrics": {**dict.fromkeys(HEADLINE_NAMES), **model.metrics},
        "test_rows": found.all.rows,
        "test_rows_good_geom": found.good_geometry.rows,
        "max_gdop": found.max_gdop,
        "checkpoint": model.pytorch_model_location,
        "sha256": model.sha256,
        "database": storage.engine.url.render_as_string(hide_password=True),
        "object_store": str(storage.settings.object_store),
    }


def show_results(console: Console, results: Mapping[str, Any]) -> None:
    """Prints the final page of a run."""
    values = results["metrics"]

    def cells(*names: str | None) -> list[str]:
        """The cells of each number: on all rows, and on those with good geometry. A number that is missing is empty."""
        both = [None if name is None else f"{name}{subset}_m" for name in names for subset in ("", "_good_geom")]
        found = [None if name is None else values[name] for name in both]
        return ["" if value is None else f"{value:,.0f}" if value >= 10_000 else f"{value:,.1f}" for value in found]

    page = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    page.add_column("error, m")
    for head in ("median", "p95", "RMSE"):
        page.add_column(f"{head}\nall", justify="right")
        page.add_column("\ngood", justify="right")
    named = [(estimator.label, estimator.prefix) for estimator in BEST_FIRST]
    for label, prefix in (*named[:1], (f"{LABEL} *", "exact_posterior"), *named[1:]):
        if any(shown := cells(*(f"{prefix}_{statistic}" for statistic in ("p50", "p95", "rmse")))):
            page.add_row(label, *shown)
    page.add_row("Cramér-Rao bound", *cells("crlb_p50", None, "crlb_rms"))
    rows, good_rows = results["test_rows"], results["test_rows_good_geom"]
    told = [
        f"all: {rows:,} test rows; good: the {good_rows:,} of them with GDOP < {results['max_gdop']:g}",
        *_limit(values),
        *_regions(values),
        BOUND_NOTE,
    ]
    if missing := values["huber_gauss_newton_rows_without_fix"]:
        of_good = values["huber_gauss_newton_rows_without_fix_good_geom"]
        told.insert(1, f"without a Gauss-Newton fix: {missing:,} of all, {of_good:,} of the good ones")
    console.print()
    console.print(plain(f"{results['model_name']} version {results['version']}"), soft_wrap=True)
    console.print()
    console.print(page)
    console.print()
    for line in (*told, results["promotion_reason"]):
        console.print(plain(line), soft_wrap=not console.is_terminal)
    for label in ("network", "checkpoint", "database", "object_store", "job_id"):
        console.print(plain(f"{label.replace('_', ' '):13} {results[label]}"), soft_wrap=True)


def _limit(values: Mapping[str, Any]) -> list[str]:
    """What the exact posterior is, and how far the model is from it; nothing if it was not computed."""
    rows, good_rows = values["exact_posterior_rows"], values["exact_posterior_rows_good_geom"]
    if not rows:
        return []
    told = [f"* the limit, on {rows:,} of the rows ({good_rows:,} good): it knows how they were simulated"]
    excess = _both(values, "test_rmse_above_posterior", lambda found: _beside(100 * found, 1, "%", "above", "below"))
    nats = _both(values, "test_nats_below_posterior", lambda found: _beside(found, 2, "nats", "below", "above"))
    share = _both(values, "test_nats_below_posterior", lambda found: f"{100 * math.exp(-found):.0f} %")
    if excess and nats and share:
        told += [
            f"the model's RMSE on those rows: {excess} the limit",
            f"its log density at the true places: {nats} the limit,",
            f"  as if it gave them this share of the density that is due: {share}",
        ]
    return told


def _both(values: Mapping[str, Any], name: str, words: Callable[[float], str]) -> str | None:
    """A number on all rows, and on those with good geometry if there are any; None if there is none."""
    everywhere, good = values[name], values[f"{name}_good_geom"]
    if everywhere is None:
        return None
    return words(everywhere) + ("" if good is None else f" (good: {words(good)})")


def _beside(value: float, digits: int, unit: str, positive: str, negative: str) -> str:
    """A difference without its sign, and on which side it lies."""
    return f"{abs(value):,.{digits}f} {unit} {positive if value >= 0 else negative}"


def _regions(values: Mapping[str, Any]) -> list[str]:
    """How many of the true places lie within the model's regions."""
    told = []
    for subset, whose in (("", "all"), ("_good_geom", "good")):
        shares = {level: values[f"test_{name}{subset}"] for name, level in COVERAGE_LEVELS.items()}
        known = {level: share for level, share in shares.items() if share is not None}
        if known:
            levels = " / ".join(f"{100 * level:g}" for level in known)
            held = " / ".join(f"{100 * share:.1f}" for share in known.values())
            told += [] if told else [f"the regions of {levels} % hold, of the true places,"]
            told.append(f"  {held} % ({whose})")
    return told
