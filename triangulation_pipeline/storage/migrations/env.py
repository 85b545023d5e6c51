"""Alembic's entry point: migrates on the connection, and in the transaction, that ``open_database`` holds."""

from alembic import context

from triangulation_pipeline.storage.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
