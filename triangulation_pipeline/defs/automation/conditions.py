"""When a model is evaluated and registered by itself: after ``trained_model`` was materialised alone."""

import dagster as dg

from triangulation_pipeline.defs.automation.runs import MINIMUM_INTERVAL_S
from triangulation_pipeline.defs.run_tags import REASON_TAG

# The splits are ignored: a new dataset is no reason to evaluate a model that was trained on another one.
AFTER_TRAINED_MODEL = (
    dg.AutomationCondition.eager().ignore(dg.AssetSelection.assets("training_split", "test_split"))
    & dg.AutomationCondition.all_deps_blocking_checks_passed()
)

evaluate_and_register = dg.AutomationConditionSensorDefinition(
    "evaluate_and_register",
    target=dg.AssetSelection.assets("model_evaluation", "registered_model"),
    minimum_interval_seconds=MINIMUM_INTERVAL_S,
    default_status=dg.DefaultSensorStatus.STOPPED,
    run_tags={REASON_TAG: "trained_model was materialised alone"},
    description="Launches model_evaluation and registered_model after trained_model was materialised alone and its "
    "check has passed, with their default settings: the model is registered as rf-triangulation.",
)
