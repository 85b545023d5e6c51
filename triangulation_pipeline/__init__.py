"""From the description of a network of radio receivers to a trained, calibrated locator of transmitters.

The names of this package are those that a notebook needs. Each is imported when it is first used, so that
``import triangulation_pipeline`` takes no time and needs neither PyTorch nor Dagster::

    import triangulation_pipeline as tp

    spec = tp.DatasetSpec(tp.NORTH_WEST_ITALY, tp.Scenario(), num_samples=1000, seed=0)
    samples = tp.simulate(spec)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from triangulation_pipeline.calibration import SiteCalibration, estimate_calibration
    from triangulation_pipeline.measurements import Measurements
    from triangulation_pipeline.model.checkpoint import Checkpoint, read_checkpoint
    from triangulation_pipeline.model.predict import locate
    from triangulation_pipeline.model.universal import load_model
    from triangulation_pipeline.network import NORTH_WEST_ITALY, ReceiverNetwork, Site
    from triangulation_pipeline.network_file import read_network
    from triangulation_pipeline.physics.dataset_spec import DatasetSpec
    from triangulation_pipeline.physics.geometry import Geometry
    from triangulation_pipeline.physics.layout import Layout
    from triangulation_pipeline.physics.scenario import PRESETS, Preset, Scenario
    from triangulation_pipeline.physics.simulator import simulate
    from triangulation_pipeline.physics.solvers.gauss_newton import Loss, gauss_newton
    from triangulation_pipeline.positions import Positions, distance_statistics
    from triangulation_pipeline.samples import Samples, Split
    from triangulation_pipeline.training.config import TrainingConfig
    from triangulation_pipeline.training.trainer import train

    __version__: str

# The module of each name.
_MODULES = {
    "NORTH_WEST_ITALY": "network",
    "PRESETS": "physics.scenario",
    "Checkpoint": "model.checkpoint",
    "DatasetSpec": "physics.dataset_spec",
    "Geometry": "physics.geometry",
    "Layout": "physics.layout",
    "Loss": "physics.solvers.gauss_newton",
    "Measurements": "measurements",
    "Positions": "positions",
    "Preset": "physics.scenario",
    "ReceiverNetwork": "network",
    "Samples": "samples",
    "SiteCalibration": "calibration",
    "Scenario": "physics.scenario",
    "Site": "network",
    "Split": "samples",
    "TrainingConfig": "training.config",
    "distance_statistics": "positions",
    "estimate_calibration": "calibration",
    "gauss_newton": "physics.solvers.gauss_newton",
    "load_model": "model.universal",
    "locate": "model.predict",
    "read_checkpoint": "model.checkpoint",
    "read_network": "network_file",
    "simulate": "physics.simulator",
    "train": "training.trainer",
}

__all__ = [
    "NORTH_WEST_ITALY",
    "PRESETS",
    "Checkpoint",
    "DatasetSpec",
    "Geometry",
    "Layout",
    "Loss",
    "Measurements",
    "Positions",
    "Preset",
    "ReceiverNetwork",
    "Samples",
    "Scenario",
    "Site",
    "SiteCalibration",
    "Split",
    "TrainingConfig",
    "__version__",
    "distance_statistics",
    "estimate_calibration",
    "gauss_newton",
    "load_model",
    "locate",
    "read_checkpoint",
    "read_network",
    "simulate",
    "train",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("triangulation-pipeline")
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value  # the next use finds it without coming here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
