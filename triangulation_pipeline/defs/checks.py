"""The checks of a promotion as Dagster knows them."""

from collections.abc import Iterable

import dagster as dg

from triangulation_pipeline.defs.metadata import escape_markdown
from triangulation_pipeline.evaluation.verdict import CheckSpec, PromotionCheck


def check_specs(asset: str, checks: Iterable[CheckSpec]) -> list[dg.AssetCheckSpec]:
    """The checks that an asset declares."""
    return [dg.AssetCheckSpec(check.name, asset=asset, description=check.description) for check in checks]


def check_result(check: PromotionCheck) -> dg.AssetCheckResult:
    """The outcome of a check; one that failed is a warning, and the run goes on."""
    return dg.AssetCheckResult(
        check_name=check.name,
        passed=check.passed,
        severity=dg.AssetCheckSeverity.WARN,
        description=escape_markdown(check.description),
        metadata=check.numbers,
    )
