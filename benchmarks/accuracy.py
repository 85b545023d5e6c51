"""How near a model is to the exact posterior, where it matters: the table of ``docs/model.md``::

    python -m benchmarks.accuracy [--checkpoint FILE] [--rows 3000] [--seed 1]

Without a checkpoint it measures the weights that come with the package. It takes half a minute a thousand rows.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from triangulation_pipeline.calibration import calibrated
from triangulation_pipeline.evaluation.reference import rmse_excess
from triangulation_pipeline.evaluation.summary import COVERAGE_LEVELS
from triangulation_pipeline.model.checkpoint import read_checkpoint
from triangulation_pipeline.model.locator import Locator
from triangulation_pipeline.model.predict import predict
from triangulation_pipeline.model.universal import universal_model
from triangulation_pipeline.network import NORTH_WEST_ITALY
from triangulation_pipeline.physics.dataset_spec import ROWS_PER_LAYOUT, DatasetSpec
from triangulation_pipeline.physics.geometry import Geometry
from triangulation_pipeline.physics.layout import Layout, Layouts
from triangulation_pipeline.physics.posterior import exact_posterior
from triangulation_pipeline.physics.scenario import PRESETS, Features, Preset, Scenario
from triangulation_pipeline.physics.simulator import simulate
from triangulation_pipeline.physics.solvers.mixture import mixture_maximum_likelihood
from triangulation_pipeline.positions.statistics import coverage, rmse_m
from triangulation_pipeline.samples import Samples, Split

Float = NDArray[np.float64]
Rows = NDArray[np.bool_]

HELD_OUT_LAYOUTS = 40
GOOD_GDOP = 5.0


@dataclass(frozen=True)
class Place:
    """Rows of a dataset on which a model is measured, none of which a training uses."""

    name: str
    must: str
    dataset: DatasetSpec
    counts: Callable[[Samples], Rows]
    shows_solutions: bool = False


@dataclass(frozen=True)
class Measured:
    """What is measured of n rows: columns of n values, NaN where there is none."""

    mean_m: Float  # error of the model's mean
    mode_m: Float  # of its mode
    exact_m: Float  # of the exact posterior's mean
    mixture_ml_m: Float
    nats_below: Float
    content: Float
    exact_content: Float
    area_share: Float  # area of the 95 % region over that of the 95 % ellipse with the same covariance
    exact_area_share: Float  # over that of the ellipse with the exact posterior's covariance
    second: Float  # probability of the second solution, 0 if there is none
    second_is_nearer: Float  # 1 if the truth is nearer to it than to the first


def places(seed: int) -> list[Place]:
    """The rows of the table. Those of the default datasets are of their test split; the others have a ``seed`` of their
    own."""

    def is_good(samples: Samples) -> Rows:
        return (samples.split == Split.test) & (samples.gdop < GOOD_GDOP)

    def is_timed(samples: Samples) -> Rows:
        return (samples.toa_present.sum(1) >= 4) & (samples.gdop < GOOD_GDOP)

    return [
        Place(
            "default network, GDOP < 5",
            "RMSE <= 1.01 x exact, median <= mixture ML's, 0.12 nats, coverage within 0.01",
            DatasetSpec(NORTH_WEST_ITALY, PRESETS[Preset.default], 50_000, 0),
            is_good,
        ),
        Place(
            f"{HELD_OUT_LAYOUTS} random networks, 4 arrival times or more, GDOP < 5",
            "RMSE <= 1.03 x exact, 0.05 nats, coverage within 0.01",
            DatasetSpec(None, Scenario(), HELD_OUT_LAYOUTS * ROWS_PER_LAYOUT, seed, Layouts.random),
            is_timed,
        ),
        Place(
            "valley, exactly 3 arrival times",
            "coverage within 0.02, second solution named, median area with it <= 1/3 of the ellipse's",
            DatasetSpec(NORTH_WEST_ITALY, PRESETS[Preset.valley], 60_000, seed),
            lambda samples: samples.toa_present.sum(1) == 3,
            shows_solutions=True,
        ),
        Place(
            "rss",
            "RMSE <= 1.02 x exact, coverage within 0.02",
            DatasetSpec(NORTH_WEST_ITALY, PRESETS[Preset.rss], 50_000, 0),
            lambda samples: samples.split == Split.test,
        ),
    ]


def measured(model: Locator, layout: Layout, samples: Samples) -> Measured:
    """The columns of samples of one layout."""
    network, scenario = layout.network, layout.scenario
    samples = calibrated(layout, samples)
    geometry, truth_en_m = Geometry(network, samples.tx_altitude_m), samples.tx_en_m(network.frame)
    found = predict(model, layout, samples)
    exact = exact_posterior(geometry, samples, scenario, truth_en_m)
    ml_en_m = np.full(truth_en_m.shape, np.nan)
    if scenario.features is Features.rss_tdoa:
        ml_en_m = mixture_maximum_likelihood(geometry, samples, scenario.excess_delay).en_m

    def error_m(en_m: Float) -> Float:
        return np.hypot(*(en_m - truth_en_m).T)

    def ellipse_m2(covariance_m2: Float) -> Float:
        return np.pi * -2 * np.log1p(-0.95) * np.sqrt(np.linalg.det(covariance_m2))

    area_m2 = found.region_area_m2(0.95)
    solutions = found.alternatives()
    second = solutions.probability[:, 1] if solutions.probability.shape[1] > 1 else np.zeros(len(samples))
    away_m = np.linalg.norm(solutions.en_m - truth_en_m[:, None], axis=-1)
    return Measured(
        mean_m=error_m(found.en_m),
        mode_m=error_m(found.mode_en_m()),
        exact_m=error_m(exact.en_m),
        mixture_ml_m=error_m(ml_en_m),
        nats_below=exact.log_density_at - found.log_density(truth_en_m),
        content=found.content_at(truth_en_m),
        exact_content=exact.content_at,
        area_share=area_m2 / ellipse_m2(found.covariance_m2),
        exact_area_share=area_m2 / ellipse_m2(exact.covariance_m2),
        second=second,
        second_is_nearer=np.where(second > 0, away_m[:, :2].argmin(1) == 1, False).astype(np.float64),
    )


def known(columns: Measured) -> Measured:
    """The rows for which there is an exact posterior: all but one in some thousands."""
    rows = np.isfinite(columns.exact_m)
    return Measured(**{name: column[rows] for name, column in vars(columns).items()})


def line(columns: Measured) -> str:
    """The numbers that the model is judged by."""
    excess, excess_error = rmse_excess(columns.mean_m, columns.exact_m)
    assert excess is not None
    known = np.isfinite(columns.mixture_ml_m)
    medians = (
        f"median {np.median(columns.mode_m[known]):.1f} m / {np.median(columns.mixture_ml_m[known]):.1f} m"
        if known.any()
        else f"median {np.median(columns.mode_m):,.0f} m"
    )
    held, exactly = (
        " ".join(f"{coverage(content, level):.3f}" for level in COVERAGE_LEVELS.values())
        for content in (columns.content, columns.exact_content)
    )
    error = np.std(columns.nats_below) / np.sqrt(len(columns.nats_below))
    return (
        f"RMSE {rmse_m(columns.mean_m):,.1f} m = {1 + excess:.3f} +- {excess_error or 0.0:.3f} x exact; {medians}; "
        f"{np.mean(columns.nats_below):.3f} +- {error:.3f} nats; cover {held} (exact {exactly})"
    )


def solutions_line(columns: Measured) -> str:
    """What is told of the second solution, and the area of the regions."""
    has = columns.second > 0
    areas = (
        f"{np.median(columns.area_share[rows]):.2f} of the ellipse with its covariance, "
        f"{np.median(columns.exact_area_share[rows]):.2f} of that with the exact one"
        for rows in (has, ~has)
    )
    return (
        f"second solution in {100 * np.mean(has):.0f} % of the rows, probability {np.mean(columns.second[has]):.3f}; "
        f"the true place is nearer to it in {np.mean(columns.second_is_nearer[has]):.3f} of them; "
        f"median area of the 95 % region with it {next(areas)}; without {next(areas)}"
    )


def main() -> None:
    """Prints three lines a place: what must be, what is, rows and seconds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, help="file of a model; default: the weights of the package")
    parser.add_argument("--rows", type=int, default=3000, help="rows a place at most (default: 3000)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the held-out networks and of valley (default: 1)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    checkpoint = universal_model() if options.checkpoint is None else read_checkpoint(options.checkpoint.read_bytes())
    model = checkpoint.locator()
    for place in places(options.seed):
        started = time.perf_counter()
        samples = simulate(place.dataset)
        samples = samples.take(place.counts(samples))
        # By their ids, which are hashes: from all layouts alike.
        chosen = np.sort(np.lexsort(samples.sample_id.T)[: options.rows])
        samples = samples.take(chosen)
        parts = [measured(model, layout, samples.take(rows)) for layout, rows in place.dataset.by_layout(samples)]
        columns = Measured(**{name: np.concatenate([getattr(p, name) for p in parts]) for name in vars(parts[0])})
        columns = known(columns)
        print(f"{place.name}\n  must  {place.must}\n  is    {line(columns)}")
        if place.shows_solutions:
            print(f"        {solutions_line(columns)}")
        print(
            f"        {len(columns.exact_m):,} of {len(samples):,} rows in {time.perf_counter() - started:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
