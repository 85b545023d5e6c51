"""What is handed from asset to asset: by lineage, the rows of one split, the bytes of one file, and nothing else."""

import hashlib
import uuid
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pytest
from sqlalchemy import Engine, update

from triangulation_pipeline.definitions import train_locator_job
from triangulation_pipeline.defs import io_managers
from triangulation_pipeline.defs.io_managers import (
    CheckpointIOManager,
    CheckpointReference,
    ModelReference,
    ReferenceIOManager,
    SplitIOManager,
    SplitReference,
)
from triangulation_pipeline.defs.resources import Storage
from triangulation_pipeline.samples import Samples, Split
from triangulation_pipeline.storage.datasets import read_samples
from triangulation_pipeline.storage.tables import synthetic_datasets
from triangulation_pipeline_tests.defs.conftest import Run, execute, settings
from triangulation_pipeline_tests.defs.test_automation import add_dataset

KEY = dg.AssetKey("thing")
NO_CONTEXT: Any = None
"""Rows and files are found by their reference alone."""


@pytest.fixture
def storage(home: Path) -> Iterator[Storage]:
    opened = Storage()
    yield opened
    opened.engine.dispose()


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as found:
        yield found


def make(instance: dg.DagsterInstance, model_id: str) -> None:
    """Materialises the asset with a reference to that model."""

    @dg.asset(key=KEY, io_manager_key="references")
    def thing() -> ModelReference:
        return ModelReference(model_id=model_id)

    dg.materialize([thing], instance=instance, resources={"references": manager()})


def manager() -> ReferenceIOManager:
    return ReferenceIOManager(storage=Storage())


def test_a_step_gets_what_its_own_run_made_and_else_what_is_newest(instance: dg.DagsterInstance) -> None:
    """Two runs side by side never take each other's."""
    taken: list[ModelReference] = []

    @dg.asset(deps=[KEY])
    def another_run() -> None:
        """Makes the asset too, after this run has, and before this run takes it."""
        make(instance, "two")

    @dg.asset(deps=[another_run], ins={"thing": dg.AssetIn(KEY, input_manager_key="references")})
    def taker(thing: ModelReference) -> None:
        taken.append(thing)

    @dg.asset(key=KEY, io_manager_key="references")
    def thing() -> ModelReference:
        return ModelReference(model_id="one")

    steps, resources = [thing, another_run, taker], {"references": manager()}
    dg.materialize(steps, instance=instance, resources=resources)
    dg.materialize(steps, instance=instance, resources=resources, selection=[taker])
    assert taken == [ModelReference(model_id="one"), ModelReference(model_id="two")]


def test_what_was_never_made_is_told(home: Path) -> None:
    run = execute(settings(), ["synthetic_dataset"])
    assert run.failure() == "receiver_network has never been materialised; materialise it first"


def test_what_a_run_did_not_make_is_taken_from_no_other(home: Path) -> None:
    """By a re-execution of a single step, which takes what the run before it made."""
    refused = execute(settings(trained_model={"epochs": 0}))
    assert execute(settings(), ["receiver_network"], refused.instance).result.success
    options = dg.ReexecutionOptions(parent_run_id=refused.run_id, step_selection=["synthetic_dataset"])
    job = dg.reconstructable(train_locator_job)
    with dg.execute_job(job, refused.instance, settings(), reexecution_options=options) as result:
        again = Run(result, refused.instance, refused.storage)
        made = "no run before this one materialised receiver_network, which this step needs"
        assert again.failure() == f"{made}; execute that step again too"


@pytest.mark.parametrize("split", Split)
def test_a_split_arrives_as_its_rows_of_its_dataset(storage: Storage, split: Split) -> None:
    dataset = add_dataset(storage.engine)
    reference = SplitReference(dataset_id=dataset.id, sha256=dataset.sha256, split=split)
    arrived = SplitIOManager(storage=storage).resolve(reference.model_dump(mode="json"), NO_CONTEXT)
    assert arrived.dataset_id == dataset.id
    counts = {Split.train: dataset.train_count, Split.val: dataset.val_count, Split.test: dataset.test_count}
    assert len(arrived.batch) == counts[split]
    assert (arrived.batch.split == split).all()
    assert (np.diff(arrived.batch.sample_index) > 0).all()


def test_a_run_reads_each_split_once(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever steps and checks ask for it; another run reads it again."""
    read: list[Split] = []

    def counted(engine: Engine, dataset_id: str, split: Split) -> Samples:
        read.append(split)
        return read_samples(engine, dataset_id, split)

    monkeypatch.setattr(io_managers, "read_samples", counted)
    run = execute(settings(synthetic_dataset={"num_samples": 1000}, trained_model={"epochs": 2}))
    assert run.result.success
    assert sorted(read) == sorted(Split)
    assert execute(settings(), ["model_evaluation"], run.instance).result.success
    assert sorted(read) == sorted([*Split, Split.train, Split.test])


def test_the_rows_of_a_run_are_freed_at_its_end(storage: Storage) -> None:
    dataset = add_dataset(storage.engine)
    reference = SplitReference(dataset_id=dataset.id, sha256=dataset.sha256, split=Split.val).model_dump(mode="json")
    splits = SplitIOManager(storage=storage)
    rows = weakref.ref(splits.resolve(reference, NO_CONTEXT).batch)
    assert splits.resolve(reference, NO_CONTEXT).batch is rows()
    splits.teardown_after_execution(NO_CONTEXT)
    assert rows() is None


def test_a_dataset_that_is_another_since_is_refused(storage: Storage) -> None:
    dataset = add_dataset(storage.engine)
    reference = SplitReference(dataset_id=dataset.id, sha256=dataset.sha256, split=Split.val).model_dump(mode="json")

    def refusal(reference: dict[str, Any]) -> str:
        with pytest.raises(dg.Failure) as refused:
            SplitIOManager(storage=storage).resolve(reference, NO_CONTEXT)
        return str(refused.value.description)

    with storage.engine.begin() as connection:
        connection.execute(update(synthetic_datasets).values(sha256="e" * 64))
    assert refusal(reference) == (
        f"dataset {dataset.id} had the digest {dataset.sha256} when its val split was materialised, and has "
        f"{'e' * 64} now; materialise the splits again"
    )
    gone = str(uuid.uuid4())
    assert refusal(reference | {"dataset_id": gone}) == f"there is no dataset {gone}"


def test_weights_arrive_as_the_very_bytes_that_were_stored(storage: Storage) -> None:
    stored = storage.objects.put("checkpoints/j/best_model.pth", b"weights")
    reference = CheckpointReference(job_id="j", location=stored.location, sha256=stored.sha256)
    assert stored.sha256 == hashlib.sha256(b"weights").hexdigest()

    def arrive(reference: CheckpointReference) -> Any:
        return CheckpointIOManager(storage=storage).resolve(reference.model_dump(mode="json"), NO_CONTEXT)

    arrived = arrive(reference)
    assert (arrived.content, arrived.reference) == (b"weights", reference)
    with pytest.raises(dg.Failure, match="is damaged: its digest is"):
        arrive(reference.model_copy(update={"sha256": "e" * 64}))
