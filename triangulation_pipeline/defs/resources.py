"""The database and the object store, as Dagster hands them to assets and sensors."""

from functools import cached_property

import dagster as dg
from sqlalchemy import Engine, make_url

from triangulation_pipeline.defs.config import refuse_environment
from triangulation_pipeline.defs.failures import plain_failures
from triangulation_pipeline.defs.run_tags import say_outcome
from triangulation_pipeline.storage.engine import open_database
from triangulation_pipeline.storage.objects import ObjectStore
from triangulation_pipeline.storage.settings import Settings, read_settings
from triangulation_pipeline.storage.stores import open_store


class Storage(dg.ConfigurableResource):
    """Database and object store of the environment's settings. Each is opened at its first use: secrets are read when a
    run needs them, not when the definitions load."""

    @cached_property
    def settings(self) -> Settings:
        """The environment's settings. Raises ValueError if they are wrong."""
        return read_settings()

    @cached_property
    def engine(self) -> Engine:
        """The database, at the newest schema. Raises ValueError and StorageError."""
        return open_database(self.settings.database_url)

    @cached_property
    def objects(self) -> ObjectStore:
        """The object store. Raises ValueError and StorageError."""
        return open_store(self.settings.object_store)

    @property
    def is_open(self) -> bool:
        """Whether both are open."""
        return {"engine", "objects"} <= self.__dict__.keys()

    def open(self) -> None:
        """Opens both now. Raises ValueError and StorageError."""
        _ = self.engine, self.objects

    def close(self) -> None:
        """Closes the database's connections, if the database is open."""
        if "engine" in self.__dict__:
            self.engine.dispose()

    def setup_for_execution(self, context: dg.InitResourceContext) -> None:
        """Refuses environment variables in the run config. As every step needs this resource, this comes before any
        step, and before Dagster makes objects of the steps' settings."""
        if context.run is not None:
            with plain_failures():
                refuse_environment(context.run.run_config)

    def teardown_after_execution(self, context: dg.InitResourceContext) -> None:
        """Says why the run failed, if it did, and closes the database's connections."""
        try:
            say_outcome(context)
        finally:
            self.close()


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
