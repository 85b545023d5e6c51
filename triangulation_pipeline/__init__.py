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
    from triangulation_pipeline.calibration_file import read_calibration, write_calibration
    from triangulation_pipeline.formats.columns import read_mapping
    from triangulation_pipeline.formats.measurement_file import read_measurements, recording_of_frame
    from triangulation_pipeline.formats.recording import Recording, recording_of, write_measurements
    from triangulation_pipeline.measurements import Measurements
    from triangulation_pipeline.model.checkpoint import Checkpoint, read_checkpoint
    from triangulation_pipeline.model.predict import locate
    from triangulation_pipeline.models import load_model
    from triangulation_pipeline.network import NORTH_WEST_ITALY, ReceiverNetwork, Site
    from triangulation_pipeline.network_file import read_network
    from triangulation_pipeline.physics.dataset_spec import DatasetSpec
    from triangulation_pipeline.physics.geometry import Geometry
    from triangulation_pipeline.physics.layout import Layout
    from triangulation_pipeline.physics.plan import best_further_site, plan_network
    from triangulation_pipeline.physics.scenario import PRESETS, Preset, Scenario
    from triangulation_pipeline.physics.simulator import simulate
    from triangulation_pipeline.physics.solvers.gauss_newton import Loss, gauss_newton
    from triangulation_pipeline.positions.points import Positions
    from triangulation_pipeline.positions.statistics import distance_statistics
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
    "Positions": "positions.points",
    "Preset": "physics.scenario",
    "ReceiverNetwork": "network",
    "Recording": "formats.recording",
    "Samples": "samples",
    "Scenario": "physics.scenario",
    "Site": "network",
    "SiteCalibration": "calibration",
    "Split": "samples",
    "TrainingConfig": "training.config",
    "best_further_site": "physics.plan",
    "distance_statistics": "positions.statistics",
    "estimate_calibration": "calibration",
    "gauss_newton": "physics.solvers.gauss_newton",
    "load_model": "models",
    "locate": "model.predict",
    "plan_network": "physics.plan",
    "read_calibration": "calibration_file",
    "read_checkpoint": "model.checkpoint",
    "read_mapping": "formats.columns",
    "read_measurements": "formats.measurement_file",
    "read_network": "network_file",
    "recording_of": "formats.recording",
    "recording_of_frame": "formats.measurement_file",
    "simulate": "physics.simulator",
    "train": "training.trainer",
    "write_calibration": "calibration_file",
    "write_measurements": "formats.recording",
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
    "Recording",
    "Samples",
    "Scenario",
    "Site",
    "SiteCalibration",
    "Split",
    "TrainingConfig",
    "__version__",
    "best_further_site",
    "distance_statistics",
    "estimate_calibration",
    "gauss_newton",
    "load_model",
    "locate",
    "plan_network",
    "read_calibration",
    "read_checkpoint",
    "read_mapping",
    "read_measurements",
    "read_network",
    "recording_of",
    "recording_of_frame",
    "simulate",
    "train",
    "write_calibration",
    "write_measurements",
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
