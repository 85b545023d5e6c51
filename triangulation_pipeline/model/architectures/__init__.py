"""The architectures: one file each, with the name that ``spec.Architecture`` gives it."""

from importlib import import_module

from triangulation_pipeline.model.locator import Locator
from triangulation_pipeline.model.spec import LocatorSpec


def build_locator(spec: LocatorSpec) -> Locator:
    """A locator with fresh weights, on the CPU. The file of an architecture calls its class ``LOCATOR``."""
    file = import_module(f"{__name__}.{spec.architecture}")
    locator: Locator = file.LOCATOR(spec.config)
    return locator
