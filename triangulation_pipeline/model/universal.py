"""The weights that come with the package."""

from importlib.resources import files

from triangulation_pipeline.model.checkpoint import Checkpoint, read_checkpoint
from triangulation_pipeline.model.spec import UNIVERSAL

# `python -m triangulation_pipeline.training.universal` makes both files.
FOLDER = files("triangulation_pipeline") / "universal"
WEIGHTS_FILE, DATA_SHEET_FILE = "weights.pth", "data_sheet.json"


def load_model(name: str) -> Checkpoint:
    """A model that comes with the package.

    Parameters
    ----------
    name : str
        "universal": the locator that was trained on random networks. It serves networks that it never saw; `locate`
        takes it with a layout.

    Returns
    -------
    Checkpoint
        The model. Its folder in the package holds a data sheet beside it.

    Raises
    ------
    ValueError
        For another name.
    """
    if name != UNIVERSAL:
        raise ValueError(
            f"the package holds the model {UNIVERSAL!r} alone, not {name!r}; read_checkpoint reads the file of another"
        )
    return read_checkpoint((FOLDER / WEIGHTS_FILE).read_bytes())
