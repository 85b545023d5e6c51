"""``import triangulation_pipeline``: the names for a notebook, and what they cost."""

import subprocess
import sys
from importlib.metadata import version

import pytest

import triangulation_pipeline as tp


def modules_after(code: str) -> set[str]:
    """The modules that a fresh process has after some code."""
    ask = f"import sys\n{code}\nprint(*sys.modules)"
    return set(subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True).stdout.split())


def test_importing_the_package_imports_nothing_of_weight() -> None:
    found = modules_after("import triangulation_pipeline")
    assert not found & {"torch", "dagster", "numpy", "pydantic", "sqlalchemy"}


def test_simulating_and_solving_need_neither_pytorch_nor_dagster_nor_a_database() -> None:
    found = modules_after(
        "import triangulation_pipeline as tp; tp.simulate, tp.gauss_newton, tp.read_network, tp.Samples"
    )
    assert "numpy" in found
    assert not found & {"torch", "dagster", "sqlalchemy"}


@pytest.mark.parametrize("name", sorted(set(tp.__all__)))
def test_every_name_is_there(name: str) -> None:
    value = getattr(tp, name)
    assert getattr(tp, name) == value
    assert name in dir(tp)
    if callable(value):
        assert (value.__name__, value.__doc__ is not None) == (name, True)


def test_the_version_is_that_of_the_installed_package() -> None:
    assert tp.__version__ == version("triangulation-pipeline")


def test_another_name_is_none() -> None:
    with pytest.raises(AttributeError, match="module 'triangulation_pipeline' has no attribute 'plan'"):
        tp.plan  # noqa: B018
    with pytest.raises(ImportError):
        from triangulation_pipeline import plan  # noqa: F401
