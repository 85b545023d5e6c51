"""The receiver network."""

import logging

import dagster as dg

from triangulation_pipeline.defs.config import ReceiverNetworkConfig
from triangulation_pipeline.defs.io_managers import NetworkReference
from triangulation_pipeline.defs.metadata import table
from triangulation_pipeline.defs.resources import Storage
from triangulation_pipeline.defs.run_tags import network_tag
from triangulation_pipeline.defs.step import step
from triangulation_pipeline.network import NETWORK_VERSION

log = logging.getLogger(__name__)


@dg.asset(group_name="network", io_manager_key="references", kinds={"yaml"}, code_version=f"network {NETWORK_VERSION}")
@step
def receiver_network(
    context: dg.AssetExecutionContext, config: ReceiverNetworkConfig, storage: Storage
) -> dg.MaterializeResult[NetworkReference]:
    """The receivers: name, position, altitude, timing, noise figure and gain of each site, from a file or the seven
    sites of north-west Italy."""
    network = config.network()
    context.instance.add_run_tags(context.run.run_id, network_tag(network.name, network.digest))
    oddities = network.oddities()
    for oddity in oddities:
        log.warning("receiver_network: %s", oddity)
    return dg.MaterializeResult(
        value=NetworkReference(network=network),
        metadata={
            "network_name": network.name,
            "network_digest": network.digest,
            "num_sites": len(network.sites),
            **({"warnings": "; ".join(oddities)} if oddities else {}),
            "sites": table(
                [{"number": number, **site.model_dump(mode="json")} for number, site in enumerate(network.sites, 1)]
            ),
        },
        data_version=dg.DataVersion(network.digest),
    )
