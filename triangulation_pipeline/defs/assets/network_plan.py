"""The plan of the network."""

import hashlib
import json
import logging
import time

import dagster as dg

from triangulation_pipeline.defs.config import NetworkPlanConfig, settings_of
from triangulation_pipeline.defs.io_managers import NetworkReference
from triangulation_pipeline.defs.metadata import drop_none, picture, table
from triangulation_pipeline.defs.resources import Storage
from triangulation_pipeline.defs.step import step
from triangulation_pipeline.network import MOST_SITES, NETWORK_VERSION
from triangulation_pipeline.physics.plan import PLAN_VERSION, best_further_site, plan_network
from triangulation_pipeline.validation import printable

log = logging.getLogger(__name__)


@dg.asset(
    group_name="network",
    kinds={"numpy"},
    code_version=f"plan {PLAN_VERSION}, network {NETWORK_VERSION}",
)
@step
def network_plan(
    context: dg.AssetExecutionContext,
    config: NetworkPlanConfig,
    storage: Storage,
    receiver_network: NetworkReference,
) -> dg.MaterializeResult:
    """How well the network could locate, place by place, before anything is trained: maps of the Cramér-Rao bound, the
    dilution of precision and the receivers that hear; the numbers without each site, and with one more at the best
    place."""
    started = time.perf_counter()
    network = receiver_network.network
    scenario = config.conditions(settings_of(context.run.run_config).synthetic_dataset)
    plan = plan_network(network, scenario)
    further = best_further_site(plan) if len(network.sites) < MOST_SITES else None

    from triangulation_pipeline.formats.plan import PlanReport
    from triangulation_pipeline.plots.plan import bound_map, hdop_map, receiver_map
    from triangulation_pipeline.plots.style import png

    report = PlanReport(plan, further)
    rows, sentences = report.rows(), report.sentences()
    whole = {name: value for name, value in rows[0].items() if name not in {"kind", "sites"}}
    conditions = json.dumps(scenario.model_dump(mode="json", exclude_none=True), sort_keys=True)
    log.info("network_plan: %s (%.1f s)", printable(sentences[0]), time.perf_counter() - started)
    return dg.MaterializeResult(
        metadata={
            "bound_map": picture(png(bound_map(plan, further)), "bound of the position error"),
            "hdop_map": picture(png(hdop_map(plan)), "horizontal dilution of precision"),
            "receiver_map": picture(png(receiver_map(plan)), "receivers that hear"),
            "summary": "; ".join(sentences),
            **drop_none(whole),
            "numbers": table([{"sites": row["sites"], **{name: row[name] for name in whole}} for row in rows]),
            "scenario": dg.MetadataValue.json(json.loads(conditions)),
        },
        data_version=dg.DataVersion(hashlib.sha256(f"{network.digest} {conditions}".encode()).hexdigest()),
    )
