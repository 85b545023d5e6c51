"""The final page of ``triangulation run``."""

import math
from collections.abc import Callable, Mapping, Sequence
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
    "geometry, and can exceed that of a model, which knows the area."
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
        "by_arrival_times": [group.model_dump() for group in found.all.by_arrival_times],
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
    console.print(plain(f"{results['model_name']}/{results['version']}"), soft_wrap=True)
    console.print()
    console.print(page)
    console.print()
    if results["by_arrival_times"]:
        console.print(_by_arrival_times(results["by_arrival_times"]))
        console.print()
    for line in (*told, results["promotion_reason"]):
        console.print(plain(line), soft_wrap=not console.is_terminal)
    for label in ("network", "checkpoint", "database", "object_store", "job_id"):
        console.print(plain(f"{label.replace('_', ' '):13} {results[label]}"), soft_wrap=True)


def _by_arrival_times(groups: Sequence[Mapping[str, Any]]) -> Table:
    """The model on all test rows by number of arrival times, beside the best classical solver of each group."""
    page = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    page.add_column("\narrival times", no_wrap=True)
    for head in (
        "\nrows",
        "median, m\nmodel",
        "\nbest solver",
        "nats\nbelow *",
        "% within\n68.3 %",
        "regions\n95 %",
    ):
        page.add_column(head, justify="right", no_wrap=True)

    def shown(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    for group in groups:
        page.add_row(
            group["name"],
            f"{group['count']:,}",
            shown(group["p50_m"], ",.1f"),
            shown(group["best_baseline_p50_m"], ",.1f"),
            shown(group["nats_below"], ".2f"),
            shown(_percent(group["coverage_68"]), ".1f"),
            shown(_percent(group["coverage_95"]), ".1f"),
        )
    return page


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _limit(values: Mapping[str, Any]) -> list[str]:
    """What the exact posterior is, and how far the model is from it; nothing if it was not computed."""
    rows, good_rows = values["exact_posterior_rows"], values["exact_posterior_rows_good_geom"]
    if not rows:
        return []
    told = [f"* the limit, on {rows:,} of the rows ({good_rows:,} good): it knows how they were simulated"]
    excess, nats = "test_rmse_above_posterior", "test_nats_below_posterior"
    if values[excess] is not None and values[nats] is not None:
        beside = _both(
            values, excess, lambda x: f"{abs(100 * x):,.1f} % {'above' if x >= 0 else 'below'}", " the limit"
        )
        below = _both(values, nats, lambda x: f"{abs(x):,.2f} nats {'below' if x >= 0 else 'above'}", " the limit")
        share = _both(values, nats, lambda x: f"{100 * math.exp(-x):.0f} %")
        told += [
            f"the model's RMSE there: {beside}",
            f"its log density there: {below},",
            f"  so that the true places have {share} of the density due to them",
        ]
    return told


def _both(values: Mapping[str, Any], name: str, words: Callable[[float], str], than: str = "") -> str:
    """A number on all rows, and on those with good geometry if there are any."""
    good = values[f"{name}_good_geom"]
    return words(values[name]) + than + ("" if good is None else f" (good: {words(good)})")


def _regions(values: Mapping[str, Any]) -> list[str]:
    """How many of the true places lie within the model's regions."""
    told: list[str] = []
    for subset, whose in (("", "all"), ("_good_geom", "good")):
        shares = {level: values[f"test_{name}{subset}"] for name, level in COVERAGE_LEVELS.items()}
        known = {level: share for level, share in shares.items() if share is not None}
        if known:
            levels = " / ".join(f"{100 * level:g}" for level in known)
            held = " / ".join(f"{100 * share:.1f}" for share in known.values())
            told += [] if told else [f"the regions of {levels} % hold, of the true places,"]
            told.append(f"  {held} % ({whose})")
    return told
