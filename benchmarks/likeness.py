"""How many fixes are flagged as unlike what the model was told: of simulated rows, and of rows that are wrong.

``python -m benchmarks.likeness [--rows 40000] [--seed 21]``
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from triangulation_pipeline.calibration import calibrated
from triangulation_pipeline.formats.fixes import fixes_of
from triangulation_pipeline.model.predict import predict
from triangulation_pipeline.model.universal import universal_model
from triangulation_pipeline.network import NORTH_WEST_ITALY
from triangulation_pipeline.physics.dataset_spec import DatasetSpec
from triangulation_pipeline.physics.layout import Layout, Layouts
from triangulation_pipeline.physics.scenario import PRESETS, Preset, Scenario
from triangulation_pipeline.physics.simulator import simulate
from triangulation_pipeline.samples import Samples

FARTHER_KM = 50.0


def main() -> None:
    """Prints the shares of flagged rows, per cent."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.likeness", description=__doc__)
    parser.add_argument("--rows", type=int, default=40_000)
    parser.add_argument("--seed", type=int, default=21)
    given = parser.parse_args()
    print("rows as simulated: flagged, %")
    for name, spec in _specs(given.rows, given.seed):
        samples = simulate(spec)
        found = [_flags(layout, calibrated(layout, samples.take(at))) for layout, at in spec.by_layout(samples)]
        print(f"  {name:<20}{_percent(np.concatenate(found), 'unlike_training'):8.3f}")
    print(f"wrong rows: unlike_training, % (with no_position and outside_area), of {' / '.join(_PRESETS)}")
    for name, damage in _DAMAGES.items():
        cells = []
        for preset in _PRESETS:
            layout = Layout(NORTH_WEST_ITALY, PRESETS[Preset(preset)])
            flags = _flags(layout, calibrated(layout, damage(layout, given.rows // 10, given.seed)))
            cells.append(f"{_percent(flags, 'unlike_training'):6.1f} ({_percent(flags, *_TOLD):5.1f})")
        print(f"  {name:<46}{' / '.join(cells)}")


_PRESETS = ("default", "valley", "line_of_sight")
_TOLD = ("unlike_training", "no_position", "outside_area")


def _specs(rows: int, seed: int) -> Iterator[tuple[str, DatasetSpec]]:
    yield "random layouts", DatasetSpec(None, Scenario(), rows, seed, Layouts.random)
    for preset in Preset:
        yield preset.value, DatasetSpec(NORTH_WEST_ITALY, PRESETS[preset], rows, seed)


def _flags(layout: Layout, rows: Samples) -> np.ndarray:
    fixes = fixes_of(predict(_MODEL, layout, rows), layout, rows, np.array([""] * len(rows), object))
    return fixes.table["flags"].to_numpy(str)


def _percent(flags: np.ndarray, *names: str) -> float:
    return 100 * float(np.mean([any(name in text for name in names) for text in flags]))


def _rows(layout: Layout, rows: int, seed: int) -> Samples:
    return simulate(DatasetSpec(layout.network, layout.scenario, rows, seed))


def _noise(factor: float) -> Callable[[Layout, int, int], Samples]:
    """Receivers that say that their times are so much better than they are."""

    def damaged(layout: Layout, rows: int, seed: int) -> Samples:
        samples = _rows(layout, rows, seed)
        return replace(samples, toa_sigma_ns=(samples.toa_sigma_ns / factor).astype(np.float32))

    return damaged


def _one(samples: Samples, seed: int) -> np.ndarray:
    """(n, r) one of the receivers with an arrival time in each row."""
    drawn = np.where(samples.toa_present, np.random.default_rng(seed).random(samples.toa_present.shape), -1.0)
    return samples.toa_present & (drawn == drawn.max(1, keepdims=True))


def _clock(late_ns: float) -> Callable[[Layout, int, int], Samples]:
    def damaged(layout: Layout, rows: int, seed: int) -> Samples:
        samples = _rows(layout, rows, seed)
        return replace(samples, toa_ns=samples.toa_ns + np.where(_one(samples, seed), late_ns, 0.0))

    return damaged


def _exchanged(layout: Layout, rows: int, seed: int) -> Samples:
    """Two receivers have each other's name."""
    samples = _rows(layout, rows, seed)
    both = np.logical_and(*samples.toa_present[:, [0, 2]].T)
    toa_ns = samples.toa_ns.copy()
    toa_ns[:, [0, 2]] = np.where(both[:, None], toa_ns[:, [2, 0]], toa_ns[:, [0, 2]])
    return replace(samples, toa_ns=toa_ns).take(both)


def _level(shift_db: float) -> Callable[[Layout, int, int], Samples]:
    def damaged(layout: Layout, rows: int, seed: int) -> Samples:
        samples = _rows(layout, rows, seed)
        return replace(samples, power_dbm=samples.power_dbm + np.where(_one(samples, seed), shift_db, 0).astype("<f4"))

    return damaged


def _outside(low_km: float, high_km: float) -> Callable[[Layout, int, int], Samples]:
    def damaged(layout: Layout, rows: int, seed: int) -> Samples:
        margin_km = layout.scenario.area_margin_km
        wide = layout.scenario.model_copy(update={"area_margin_km": margin_km + FARTHER_KM})
        samples = _rows(Layout(layout.network, wide), 4 * rows, seed)
        area = layout.network.service_area(layout.scenario.area_margin_m)
        east_m, north_m = samples.tx_en_m(layout.network.frame).T
        beyond_m = np.maximum(
            np.maximum(area.east_min_m - east_m, east_m - area.east_max_m),
            np.maximum(area.north_min_m - north_m, north_m - area.north_max_m),
        )
        return samples.take((beyond_m > 1e3 * low_km) & (beyond_m < 1e3 * high_km))

    return damaged


_DAMAGES: dict[str, Callable[[Layout, int, int], Samples]] = {
    "times 2 times worse than the receivers say": _noise(2),
    "times 5 times worse than the receivers say": _noise(5),
    "one clock 1 us late": _clock(1e3),
    "one clock 3 us late": _clock(3e3),
    "one clock 10 us late": _clock(1e4),
    "one clock 10 us early": _clock(-1e4),
    "two receivers have each other's name": _exchanged,
    "one level 20 dB too high": _level(20),
    "one level 40 dB too high": _level(40),
    "one level 40 dB too low": _level(-40),
    "transmitter 1 to 20 km outside the area": _outside(1, 20),
    "transmitter 20 to 50 km outside the area": _outside(20, FARTHER_KM),
}
_MODEL = universal_model().locator()


if __name__ == "__main__":
    main()
