"""What every asset does before its own work."""

from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

import dagster as dg

from triangulation_pipeline.defs.config import check_run_config
from triangulation_pipeline.defs.dagster_private import DagsterExecutionInterruptedError
from triangulation_pipeline.defs.failures import plain_failures
from triangulation_pipeline.defs.resources import Storage
from triangulation_pipeline.defs.run_tags import resumed_tags, run_tags
from triangulation_pipeline.storage.registry import find_referred_model

_Inputs = ParamSpec("_Inputs")
_Result = TypeVar("_Result")


def step(
    compute: Callable[Concatenate[dg.AssetExecutionContext, _Inputs], _Result],
) -> Callable[Concatenate[dg.AssetExecutionContext, _Inputs], _Result]:
    """Decorator of an asset's function, which takes ``context`` and ``storage``: checks the run before the function is
    called, and turns expected errors of both into failures of one sentence."""

    @wraps(compute)
    def checked(context: dg.AssetExecutionContext, *args: _Inputs.args, **inputs: _Inputs.kwargs) -> _Result:
        end_if_terminated(context)
        storage = inputs["storage"]
        assert isinstance(storage, Storage)
        with plain_failures():
            if not storage.is_open:
                _check_run(context, storage)
            return compute(context, *args, **inputs)

    return checked


def end_if_terminated(context: dg.AssetExecutionContext) -> None:
    """Ends a run that was terminated and did not notice it. Dagster interrupts a run once, by an exception, and Python
    loses an exception that is raised in some places, for example in the middle of an import."""
    run = context.instance.get_run_by_id(context.run.run_id)
    if run is not None and run.status is dg.DagsterRunStatus.CANCELING:
        raise DagsterExecutionInterruptedError


def _check_run(context: dg.AssetExecutionContext, storage: Storage) -> None:
    """Once per run, before its first step: checks the settings of all steps, tags the run, opens database and object
    store, and looks up the model that the training begins from."""
    run = context.run
    makes_network = not run.asset_selection or dg.AssetKey("receiver_network") in run.asset_selection
    settings = check_run_config(run.run_config, makes_network=makes_network)
    tags = run_tags(settings, selection=run.asset_selection) | resumed_tags(run)
    context.instance.add_run_tags(run.run_id, tags)
    storage.open()
    if (parent := settings.trained_model.registered_parent) is not None:
        find_referred_model(storage.engine, parent)
