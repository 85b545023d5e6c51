"""How assets hand over their results: as references (ids and digests) in the metadata of materialisations.

A step finds the references of its inputs by lineage, so two runs at the same time never take each other's dataset or
weights.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import dagster as dg
from pydantic import BaseModel, ConfigDict, PrivateAttr

from triangulation_pipeline.defs.failures import plain_failures
from triangulation_pipeline.defs.resources import Storage
from triangulation_pipeline.network import ReceiverNetwork
from triangulation_pipeline.samples import Samples, Split
from triangulation_pipeline.storage.datasets import get_dataset, read_samples
from triangulation_pipeline.storage.objects import read_object
from triangulation_pipeline.validation import printable

if TYPE_CHECKING:
    from triangulation_pipeline.model.checkpoint import Checkpoint

REFERENCE = "reference"


class Reference(BaseModel):
    """Base class of the references that assets hand over."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class NetworkReference(Reference):
    """A receiver network. It is small, so the reference holds it whole."""

    network: ReceiverNetwork


class DatasetReference(Reference):
    """A dataset in the database."""

    dataset_id: str
    sha256: str


class SplitReference(Reference):
    """One split of a dataset in the database."""

    dataset_id: str
    sha256: str
    split: Split


class CheckpointReference(Reference):
    """Weights in the object store, and the job that trained them."""

    job_id: str
    location: str
    sha256: str


class EvaluationReference(Reference):
    """An evaluation in the database."""

    evaluation_id: str


class ModelReference(Reference):
    """A registered model in the database."""

    model_id: str


def reference_type(reference: type[Reference]) -> dg.DagsterType:
    """The ``dagster_type`` of an asset that has checks: its return annotation cannot name the type of its value."""
    return dg.PythonObjectDagsterType(reference)


class ReferenceIOManager(dg.ConfigurableIOManager):
    """Writes references into metadata and finds them again.

    It takes the materialisation by this run, or by the run that a re-execution takes its inputs from; else the latest
    materialisation of the asset.
    """

    storage: Storage

    @property
    def _places(self) -> Storage:
        # To a type checker a nested resource may still be partial; in a run it never is.
        assert isinstance(self.storage, Storage)
        return self.storage

    def handle_output(self, context: dg.OutputContext, obj: Reference) -> None:
        """Adds the reference to the materialisation."""
        context.add_output_metadata({REFERENCE: dg.MetadataValue.json(obj.model_dump(mode="json"))})

    def load_input(self, context: dg.InputContext) -> Any:
        """The reference, or what it refers to."""
        found = _materialization(context)
        reference: Any = found.metadata[REFERENCE].value
        context.log.info(f"{context.asset_key.to_user_string()} by lineage: {_named(reference)}")
        return self.resolve(reference, context)

    def resolve(self, reference: Any, context: dg.InputContext) -> Any:
        """The typed reference the input asks for."""
        return context.dagster_type.typing_type.model_validate(reference)


@dataclass(frozen=True)
class StoredSplit:
    """The rows of a split, and the id of their dataset."""

    dataset_id: str
    batch: Samples


def same_dataset(**dataset_ids: str | None) -> str:
    """The id of the dataset that all inputs of a step belong to. Raises ValueError if they belong to several, or to
    none."""
    first, *others = dataset_ids.values()
    if first is None or any(other != first for other in others):
        (name, dataset_id), *rest = dataset_ids.items()
        listed = "".join(f", {name} of dataset {dataset_id}" for name, dataset_id in rest)
        raise ValueError(f"{name} is of dataset {dataset_id}{listed}; materialise them in one run")
    return first


class SplitIOManager(ReferenceIOManager):
    """A split arrives as its rows, which a run reads once.

    It holds the splits that the steps of the run have asked for until the run ends: at most all rows of one dataset,
    which is what the check of the splits holds at once, and less than the simulation of the dataset takes.
    """

    _splits: dict[SplitReference, StoredSplit] = PrivateAttr(default_factory=dict)

    def teardown_after_execution(self, context: dg.InitResourceContext) -> None:
        """Frees the rows."""
        self._splits.clear()

    def resolve(self, reference: Any, context: dg.InputContext) -> StoredSplit:
        """The rows, in index order. A dataset that is gone, or has changed, is a failure with one sentence."""
        split = SplitReference.model_validate(reference)
        with plain_failures():
            found = get_dataset(self._places.engine, split.dataset_id)
            if found.sha256 != split.sha256:
                raise ValueError(
                    f"dataset {split.dataset_id} had the digest {split.sha256} when its {split.split.name} split was "
                    f"materialised, and has {found.sha256} now; materialise the splits again"
                )
            if split not in self._splits:
                rows = read_samples(self._places.engine, split.dataset_id, split.split)
                self._splits[split] = StoredSplit(split.dataset_id, rows)
            return self._splits[split]


@dataclass(frozen=True)
class StoredCheckpoint:
    """The bytes of a checkpoint with a verified digest, and the reference to them."""

    reference: CheckpointReference
    content: bytes

    def read(self) -> "Checkpoint":
        """The checkpoint. Raises ValueError if the bytes are not one."""
        from triangulation_pipeline.model.checkpoint import read_checkpoint

        return read_checkpoint(self.content)


class CheckpointIOManager(ReferenceIOManager):
    """Weights arrive as the bytes of a checkpoint with a verified digest."""

    def resolve(self, reference: Any, context: dg.InputContext) -> StoredCheckpoint:
        """The bytes of the weights. A missing or damaged object is a failure with one sentence."""
        found = CheckpointReference.model_validate(reference)
        with plain_failures():
            return StoredCheckpoint(found, read_object(self._places.objects, found.location, found.sha256))


def _named(reference: Mapping[str, Any]) -> str:
    """The values of a reference on one line; a network is given by its name."""
    return ", ".join(
        f"{field} {printable(str(value['name'] if isinstance(value, Mapping) else value))}"
        for field, value in reference.items()
    )


def _materialization(context: dg.InputContext) -> dg.AssetMaterialization:
    asset_key = context.asset_key
    instance: dg.DagsterInstance = context.instance
    upstream = context.upstream_output
    try:
        run_id = upstream.run_id if upstream is not None else None
    except dg.DagsterInvariantViolationError:
        # A single step is executed again, and no earlier run has made its input.
        raise dg.Failure(
            description=f"no run before this one materialised {asset_key.to_user_string()}, which this step needs; "
            "execute that step again too",
        ) from None
    if run_id is not None and instance.has_run(run_id):
        for entry in reversed(instance.all_logs(run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION)):
            found = entry.asset_materialization
            if found is not None and found.asset_key == asset_key:
                return found
        raise dg.Failure(
            description=f"run {run_id} did not materialise {asset_key.to_user_string()}, which this step needs of it",
        )
    latest = instance.get_latest_materialization_event(asset_key)
    if latest is None or latest.asset_materialization is None:
        raise dg.Failure(
            description=f"{asset_key.to_user_string()} has never been materialised; materialise it first",
        )
    return latest.asset_materialization
