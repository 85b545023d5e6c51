"""LOCATOR_VERSION stands for the arithmetic from weights to predictions: fixed weights predict what they always did."""

import numpy as np
import pytest

from triangulation_pipeline.model.inputs import locator_inputs
from triangulation_pipeline.model.predict import predict
from triangulation_pipeline.model.spec import LOCATOR_VERSION, Architecture
from triangulation_pipeline_tests.model.helpers import fresh, poked, samples, spec_for

# Of the first rows: east, north, and the variances of both, by version. Whoever changes them raises the version, unless
# it is the simulator's rows that have changed (GENERATOR_VERSION).
PREDICTED = {
    (1, Architecture.triangulation): [
        (-90754.6, -41047.3, 27944.9, 18217.7),
        (-72369.0, 10828.4, 1111.7, 3106.74),
        (143.785, -35350.3, 230.819, 1074.63),
        (82434.1, 78276.7, 15451.4, 45115.5),
    ],
    (1, Architecture.regression): [
        (4658.06, 16799.3, 1.37439e10, 1.01542e9),
        (-22824.8, 29493.8, 9.63115e9, 1.93447e9),
        (1108.55, 30742.2, 1.23534e10, 1.58933e9),
        (21792.1, 7737.3, 1.61512e10, 1.47357e9),
    ],
}


@pytest.mark.parametrize("architecture", list(Architecture))
def test_a_change_of_predictions_is_a_new_locator_version(architecture: Architecture) -> None:
    batch = samples(50)
    found = predict(poked(fresh(spec_for(architecture))), locator_inputs(batch))
    rows = np.column_stack([found.en_m, found.covariance_m2[:, 0, 0], found.covariance_m2[:, 1, 1]])[:4]
    # Machines round differently; a change of the arithmetic is larger.
    assert rows == pytest.approx(np.array(PREDICTED[LOCATOR_VERSION, architecture]), rel=1e-3)
