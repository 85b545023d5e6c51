"""The weights that come with the package."""

from importlib.resources import files

from triangulation_pipeline.model.checkpoint import Checkpoint, read_checkpoint

# `python -m triangulation_pipeline.training.universal` makes both files.
FOLDER = files("triangulation_pipeline") / "universal"
WEIGHTS_FILE, DATA_SHEET_FILE = "weights.pth", "data_sheet.json"


def universal_model() -> Checkpoint:
    """The locator that was trained on random networks. Its folder in the package holds a data sheet beside it."""
    return read_checkpoint((FOLDER / WEIGHTS_FILE).read_bytes())
