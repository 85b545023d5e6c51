"""The synthetic dataset."""

import logging
import time

import dagster as dg
import numpy as np

from triangulation_pipeline.defs.config import SyntheticDatasetConfig
from triangulation_pipeline.defs.io_managers import DatasetReference, NetworkReference, reference_type
from triangulation_pipeline.defs.memory import check_memory
from triangulation_pipeline.defs.metadata import drop_none, picture
from triangulation_pipeline.defs.resources import Storage
from triangulation_pipeline.defs.step import step
from triangulation_pipeline.network import ReceiverNetwork
from triangulation_pipeline.physics.constants import GOOD_GDOP
from triangulation_pipeline.physics.dataset_spec import GENERATOR_VERSION
from triangulation_pipeline.physics.layout import Layouts
from triangulation_pipeline.physics.quality import quality_metrics
from triangulation_pipeline.physics.simulator import simulate_chunks
from triangulation_pipeline.samples import Samples
from triangulation_pipeline.storage.datasets import (
    DatasetRecord,
    find_dataset,
    get_dataset,
    read_samples,
    verify_dataset,
    write_dataset,
)
from triangulation_pipeline.validation import printable

log = logging.getLogger(__name__)

LEAST_ACCEPTANCE_RATE = 0.5


@dg.asset(
    io_manager_key="references",
    group_name="simulation",
    kinds={"numpy", "table"},
    code_version=f"generator {GENERATOR_VERSION}",
    dagster_type=reference_type(DatasetReference),
    check_specs=[
        dg.AssetCheckSpec(
            "dataset_quality",
            asset="synthetic_dataset",
            description="Most transmitters are heard by enough receivers, and some test rows have a good geometry.",
        )
    ],
)
@step
def synthetic_dataset(
    context: dg.AssetExecutionContext,
    config: SyntheticDatasetConfig,
    storage: Storage,
    receiver_network: NetworkReference,
) -> dg.MaterializeResult:
    """Simulated transmissions as the network, or many random ones, hear them: rows of `synthetic_training_samples`,
    with truth, levels, arrival times, dilution of precision and the Cramér-Rao bound. An equal dataset that exists is
    reused."""
    started = time.perf_counter()
    if not config.dataset_id:
        record, reused = _simulated(config, storage, receiver_network.network)
    else:
        record, reused = _existing(config.dataset_id, storage, receiver_network.network), True
    batch = read_samples(storage.engine, record.id)
    seconds = time.perf_counter() - started
    log.info(
        "synthetic_dataset: %s, %s samples %s in %.1f s",
        printable(record.name),
        f"{record.num_samples:,}",
        "reused" if reused else "simulated and stored",
        seconds,
    )

    from triangulation_pipeline.plots.dataset import dataset_histograms, dataset_map
    from triangulation_pipeline.plots.style import png

    spec = record.spec
    layout, of_layout = next(spec.by_layout(batch))
    shown = batch.take(of_layout).of_sites(len(layout.network.sites))
    quality = record.quality_metrics
    heard, good = quality["acceptance_rate"], quality["good_geometry_share"]
    return dg.MaterializeResult(
        value=DatasetReference(dataset_id=record.id, sha256=record.sha256),
        metadata={
            "map": picture(png(dataset_map(layout.network, shown)), "transmitters by CRLB"),
            "histograms": picture(png(dataset_histograms(batch)), "SNR, HDOP and detections"),
            "dagster/row_count": record.num_samples,
            "dataset_id": record.id,
            "dataset_name": record.name,
            "layouts": spec.layouts.value,
            "networks": len(np.unique(spec.layout_number(batch.sample_index))),
            "sha256": record.sha256,
            "reused": reused,
            **({} if reused else {"samples_per_second": round(record.num_samples / seconds)}),
            **drop_none(quality),
            "scenario": dg.MetadataValue.json(spec.scenario.model_dump(mode="json", exclude_none=True)),
        },
        data_version=dg.DataVersion(record.sha256),
        check_results=[
            dg.AssetCheckResult(
                check_name="dataset_quality",
                passed=heard >= LEAST_ACCEPTANCE_RATE and good > 0,
                severity=dg.AssetCheckSeverity.WARN,
                description=f"{heard:.1%} of the candidate transmitters are heard by enough receivers (at least "
                f"{LEAST_ACCEPTANCE_RATE:.0%} expected); {good:.1%} of the samples have GDOP < {GOOD_GDOP:g} "
                "(some expected)",
                metadata={
                    "acceptance_rate": heard,
                    "lowest": LEAST_ACCEPTANCE_RATE,
                    "good_geometry_share": good,
                    "rows": record.num_samples,
                },
            )
        ],
    )


def _simulated(
    config: SyntheticDatasetConfig, storage: Storage, network: ReceiverNetwork
) -> tuple[DatasetRecord, bool]:
    spec = config.spec(network)
    check_memory(spec.num_samples, spec.num_sites)
    if find_dataset(storage.engine, spec.dataset_id) is not None:
        return verify_dataset(storage.engine, spec.dataset_id), True
    # Simulated before the transaction, so that no other writer waits for arithmetic.
    chunks = list(simulate_chunks(spec))
    return write_dataset(
        storage.engine,
        spec,
        name=f"{config.preset.value}-{spec.network_name}-{spec.num_samples}-{spec.dataset_id[:8]}",
        batches=[chunk.batch for chunk in chunks],
        quality_metrics=lambda: quality_metrics(Samples.concatenate([chunk.batch for chunk in chunks]), chunks),
    )


def _existing(dataset_id: str, storage: Storage, network: ReceiverNetwork) -> DatasetRecord:
    stored = get_dataset(storage.engine, dataset_id)
    check_memory(stored.num_samples, stored.spec.num_sites)
    record = verify_dataset(storage.engine, dataset_id)
    if record.spec.layouts is Layouts.own and record.network_digest != network.digest:
        raise ValueError(
            f"dataset_id: dataset {dataset_id} was made for the network {record.network_name!r} "
            f"({record.network_digest[:8]}), receiver_network is {network.name!r} ({network.digest[:8]}); "
            "give receiver_network that network's file"
        )
    return record
