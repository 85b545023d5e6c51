"""Models by what a person calls them: those that come with the package, files, and registered ones."""

from pathlib import Path

from triangulation_pipeline.documents import file_name
from triangulation_pipeline.model.checkpoint import Checkpoint, read_checkpoint
from triangulation_pipeline.model.names import ModelName
from triangulation_pipeline.model.spec import UNIVERSAL
from triangulation_pipeline.model.universal import universal_model
from triangulation_pipeline.validation import expanded, shown

FILE_ENDING = ".pth"


def load_model(reference: str) -> Checkpoint:
    """A model, by what a person calls it.

    Parameters
    ----------
    reference : str
        "universal": the locator that comes with the package. It was trained on random networks, and serves networks
        that it never saw; `locate` takes it with a layout. Or a registered model of the project whose folder is
        DAGSTER_HOME, or the current one: "rf-triangulation/3" is a version, "rf-triangulation@production" the one in
        production, "rf-triangulation" the one in production, or the newest if none is; its id serves too. Or the path
        of a file that ends in .pth.

    Returns
    -------
    Checkpoint
        The model.

    Raises
    ------
    ValueError
        With one sentence, if there is no such model, or if it cannot be read.
    StorageError
        The same of the database and the object store.
    """
    if reference == UNIVERSAL:
        return universal_model()
    if reference.lower().endswith(FILE_ENDING):
        return _from_file(expanded(reference))
    if ModelName.parse(reference) is None:
        raise ValueError(
            f"a model must be {UNIVERSAL}, name, name/version as in rf-triangulation/3, name@production, an id, or a "
            f"file that ends in {FILE_ENDING}, got {shown(reference)}"
        )

    # Imported here: it takes a second, and most who locate need no database.
    from triangulation_pipeline.jobs.record import load_checkpoint
    from triangulation_pipeline.storage.engine import open_existing_database
    from triangulation_pipeline.storage.registry import find_referred_model
    from triangulation_pipeline.storage.settings import read_settings
    from triangulation_pipeline.storage.stores import open_store

    settings = read_settings()
    engine = open_existing_database(settings.database_url, f"the model {shown(reference)}")
    try:
        model = find_referred_model(engine, reference)
    finally:
        engine.dispose()
    return load_checkpoint(open_store(settings.object_store), model.pytorch_model_location, model.sha256)


def _from_file(path: Path) -> Checkpoint:
    try:
        return read_checkpoint(path.read_bytes())
    except OSError as error:
        raise ValueError(f"model {file_name(path)} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"model {file_name(path)}: {error}") from None
