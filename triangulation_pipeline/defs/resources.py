"""What assets reach the outside by, and how a refusal becomes one sentence in the UI."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import dagster as dg
from pydantic import PrivateAttr
from sqlalchemy import Engine, make_url

import triangulation_pipeline
from triangulation_pipeline.defs.config import check_run_config, network_of, refuse_environment, training_settings
from triangulation_pipeline.defs.dagster_private import DagsterExecutionInterruptedError
from triangulation_pipeline.defs.run_tags import resumed_tags, run_tags, say_outcome
from triangulation_pipeline.storage.engine import open_database
from triangulation_pipeline.storage.errors import StorageError
from triangulation_pipeline.storage.objects import ObjectStore, open_store
from triangulation_pipeline.storage.registry import find_referred_model
from triangulation_pipeline.storage.settings import Settings, read_settings
from triangulation_pipeline.validation import brief

# Of a sentence in the UI, in characters; many sites with many faults would make it longer.
LONGEST_REFUSAL = 1000


class Storage(dg.ConfigurableResource):
    """Database and object store of the environment's settings, opened when first used: secrets are read when a run
    needs them, not when definitions load."""

    _opened: "OpenStorage" = PrivateAttr(default_factory=lambda: OpenStorage())

    @property
    def is_checked(self) -> bool:
        """Whether this run's settings were checked and both places opened."""
        return self._opened.is_open

    def open(self) -> None:
        """Opens both places. Raises ValueError and StorageError, one sentence each."""
        self._opened.open()

    @property
    def engine(self) -> Engine:
        """The database."""
        return self._opened.engine

    @property
    def objects(self) -> ObjectStore:
        """The object store."""
        return self._opened.objects

    def setup_for_execution(self, context: dg.InitResourceContext) -> None:
        """Before any step, and before Dagster makes an object of its settings, as every step needs this resource."""
        if context.run is not None:
            with refusals():
                refuse_environment(context.run.run_config)

    def teardown_after_execution(self, context: dg.InitResourceContext) -> None:
        """Says why the run failed, if it did, and closes the database's connections."""
        try:
            say_outcome(context)
        finally:
            self._opened.close()


def _places() -> str:
    """Database and object store of this environment in Markdown, without passwords; or what is wrong with them."""
    try:
        settings = read_settings()
    except ValueError as error:
        return f"Wrong: {error}"
    database = make_url(settings.database_url).set(query={}).render_as_string(hide_password=True)
    return f"- database: `{database}`\n- object store: `{settings.object_store}`"


# Dagster shows the docstring on the resource's page. Fields would be settings that a run could change.
Storage.__doc__ = (
    "Where rows and objects are kept, by TRIANGULATION_DATABASE_URL and TRIANGULATION_OBJECT_STORE, as this code "
    f"location found them when it was loaded:\n\n{_places()}\n\nBoth are opened when a run first uses them."
)


class OpenStorage:
    """Database and object store, each opened at first use. Raises ValueError and StorageError, one sentence each."""

    @cached_property
    def settings(self) -> Settings:
        """The environment's settings."""
        return read_settings()

    @cached_property
    def engine(self) -> Engine:
        """The database, migrated."""
        return open_database(self.settings.database_url)

    @cached_property
    def objects(self) -> ObjectStore:
        """The object store."""
        return open_store(self.settings.object_store, s3_client)

    is_open: bool = False

    def open(self) -> None:
        """Opens both now."""
        self.is_open = self.engine is not None and self.objects is not None

    def close(self) -> None:
        """Closes the database's connections, if any were opened."""
        if "engine" in self.__dict__:
            self.engine.dispose()


def s3_client() -> Any:
    """A boto3 client by the AWS variables (``AWS_ENDPOINT_URL_S3``, ``AWS_ACCESS_KEY_ID``, ...) and files.

    With an endpoint of one's own, buckets are addressed by path: ``http://host:9000/bucket``, no name in the DNS.
    """
    # Seconds that a folder need not wait.
    from dagster_aws.s3 import S3Resource

    # The store has a deadline of its own; botocore's part is one quick second try of each request.
    return S3Resource(max_attempts=1).get_client()


@contextmanager
def refusals() -> Iterator[None]:
    """Bad input, a diverged training, storage faults and too little memory end a step with one sentence and without a
    retry."""
    try:
        yield
    except MemoryError as error:
        raise dg.Failure(
            description="the memory that this process may take does not suffice; take fewer samples or sites",
            metadata=_place_of(error),
            allow_retries=False,
        ) from None
    except (ValueError, ArithmeticError, StorageError) as error:
        # Without the chain of what was raised, whose stack traces would hide the sentence.
        description = brief(str(error), LONGEST_REFUSAL)
        raise dg.Failure(description=description, metadata=_place_of(error), allow_retries=False) from None


def _place_of(error: BaseException) -> dict[str, str]:
    """Where in this package it was raised, or called for: for who looks for a fault of ours."""
    package = Path(triangulation_pipeline.__file__).parent
    # At the least `refusals` itself, through which it came.
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if package in Path(frame.filename).parents]
    place = Path(frames[-1].filename).relative_to(package)
    return {"raised_in": f"{place}:{frames[-1].lineno} ({frames[-1].name}), {type(error).__name__}"}


def end_if_terminated(context: dg.AssetExecutionContext) -> None:
    """Ends a run that was terminated and has not noticed. Dagster interrupts it once, by an exception, and Python loses
    one that is raised in some places, in the middle of an import for example."""
    run = context.instance.get_run_by_id(context.run.run_id)
    if run is not None and run.status is dg.DagsterRunStatus.CANCELING:
        raise DagsterExecutionInterruptedError


def preflight(context: dg.AssetExecutionContext, storage: Storage) -> None:
    """First thing in every asset, done by a run's first: the settings of the whole run are checked, the run is tagged,
    database and object store are opened, and the model to begin from is looked up."""
    end_if_terminated(context)
    if storage.is_checked:
        return
    run = context.run
    makes_network = not run.asset_selection or dg.AssetKey("receiver_network") in run.asset_selection
    with refusals():
        check_run_config(run.run_config, makes_network=makes_network)
        network = network_of(run.run_config) if makes_network else None
        tags = run_tags(run.run_config, network, run.asset_selection) | resumed_tags(run)
        context.instance.add_run_tags(run.run_id, tags)
        storage.open()
        if (parent_model_id := training_settings(run.run_config).parent_model_id) is not None:
            find_referred_model(storage.engine, parent_model_id)
