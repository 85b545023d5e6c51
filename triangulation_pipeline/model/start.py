"""Where a locator begins: hypotheses of a transmitter's place, several if the row leaves doubt, with what speaks for
each. Nothing here is learned.

Rows with three arrival times or more are searched (``search``), the posterior of the others is summed over cells
(``cells``).
"""

from functools import lru_cache
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from triangulation_pipeline.measurements import Measurements
from triangulation_pipeline.model.cells import Cells
from triangulation_pipeline.model.hypotheses import Hypotheses
from triangulation_pipeline.model.inputs import LocatorInputs
from triangulation_pipeline.model.receptions import Receptions
from triangulation_pipeline.model.search import Search
from triangulation_pipeline.model.spec import StartConfig
from triangulation_pipeline.network import LEAST_ARRIVAL_TIMES
from triangulation_pipeline.physics.constants import SPEED_OF_LIGHT_M_PER_NS
from triangulation_pipeline.physics.layout import Layout
from triangulation_pipeline.physics.propagation import path_loss_slope_db


def prepared(layout: Layout, measurements: Measurements, config: StartConfig, solve: bool) -> LocatorInputs:
    """The rows of calibrated measurements with their hypotheses.

    Parameters
    ----------
    layout : Layout
        Network and scenario.
    measurements : Measurements
        n rows, freed of what is known of the sites.
    config : StartConfig
        The constants.
    solve : bool
        Whether arrival times are solved for; otherwise the posterior of every row is summed over cells.

    Returns
    -------
    LocatorInputs
        n rows, each independent of the others.
    """
    scenario = layout.scenario
    rows = Receptions.of(layout, measurements)
    n, width = len(rows), len(rows.hears)
    timed, heard = (mask.sum(0).astype(np.int64) for mask in (rows.timed, rows.hears))
    is_solved = (timed >= LEAST_ARRIVAL_TIMES) & solve
    # Rows that as many receivers hear stand together, so that none is padded much; those that are searched finely too.
    kind = (is_solved * 2 + (timed == LEAST_ARRIVAL_TIMES)) * (width + 1) + heard
    order = np.lexsort((np.abs(rows.judged).sum(0), kind))
    ordered, kind = rows.take(order), kind[order]
    found = Hypotheses.empty(n, config.hypotheses, width)
    search, cells = _prepared(layout, config)
    for start, end in pairwise(np.flatnonzero(np.diff(kind, prepend=-1, append=-1))):
        solver, alike = (search if is_solved[order[start]] else cells), slice(start, end)
        found.put(alike, solver.hypotheses(ordered.part(alike)))
    back = np.empty_like(order)
    back[order] = np.arange(n)
    surface = layout.network.frame.surface_coefficients
    places_m = found.places_m[back]
    distance_m = search.distances_m(rows, places_m[:, :1].transpose(2, 0, 1))[..., 0]
    log_km = (np.log(distance_m / 1e3) * rows.hears).sum(0, dtype=np.float64) / np.maximum(heard, 1)
    slope_db = path_loss_slope_db(scenario, np.exp(log_km))

    def of_rows(value: float) -> Tensor:
        return torch.full((n,), value, dtype=torch.float32)

    return LocatorInputs(
        site_m_B3W=_tensor(rows.site_m.transpose(2, 0, 1)),
        hears_BW=_tensor(rows.hears.T > 0),
        timed_BW=_tensor(rows.timed.T > 0),
        toa_m_BW=_tensor(rows.toa_m.T),
        sigma_m_BW=_tensor(rows.sigma_m.T),
        level_BKW=_tensor(found.level[back]),
        level_slope_B=_tensor((slope_db / scenario.link_level_sigma_db).astype(np.float32)),
        altitude_m_B=_tensor(rows.altitude_m),
        surface_B5=torch.tensor(surface, dtype=torch.float32).expand(n, 5).contiguous(),
        delay_probability_B=of_rows(scenario.nlos_probability),
        delay_mean_m_B=of_rows(scenario.nlos_mean_ns * SPEED_OF_LIGHT_M_PER_NS),
        area_m_B=_tensor(rows.area_m),
        alive_BK=_tensor(found.alive[back]),
        hypothesis_m_BK2=_tensor(places_m),
        spread_m_BK3=_tensor(found.spread_m[back]),
        hypothesis_features_BKF=_tensor(found.features[back]),
    )


@lru_cache(maxsize=16)
def _prepared(layout: Layout, config: StartConfig) -> tuple[Search, Cells]:
    """What depends on the layout alone."""
    return Search(layout, config), Cells(layout, config)


def _tensor(values: NDArray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values))
