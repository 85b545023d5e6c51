import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from triangulation_pipeline.formats.regions import region_polygons, within_180
from triangulation_pipeline.frame import LocalFrame
from triangulation_pipeline.positions.mixtures import MixturePositions
from triangulation_pipeline_tests.formats.fixed import mixture

FRAME = LocalFrame(45.0, 8.0)
LEVELS = (0.5, 0.95)


def drawn(positions: MixturePositions, frame: LocalFrame = FRAME) -> np.ndarray:
    return region_polygons(positions, frame, np.zeros(len(positions)), LEVELS)


def in_metres(polygons: shapely.MultiPolygon, frame: LocalFrame = FRAME) -> shapely.MultiPolygon:
    """The polygons in the frame."""
    lon, lat = shapely.get_coordinates(polygons).T
    return shapely.set_coordinates(polygons, frame.en_m(lat, lon, 0.0))


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_polygons_cover_what_the_regions_cover(seed: int) -> None:
    """Whatever the components: near and far, round and thin, heavy and light."""
    rng = np.random.default_rng(seed)
    n, k = 3, int(rng.integers(1, 6))
    root = rng.normal(0, 1, (n, k, 2, 2)) * np.exp(rng.uniform(2, 6, (n, k, 1, 1)))
    positions = MixturePositions.of_components(
        np.log(rng.dirichlet(np.full(k, 0.7), n)),
        rng.normal(0, np.exp(rng.uniform(3, 8)), (n, k, 2)) + rng.uniform(-1e5, 1e5, (n, 1, 2)),
        root @ root.transpose(0, 1, 3, 2) + 25 * np.eye(2),
        rng.uniform(2.5, 30, (n, k)),
    )
    polygons = drawn(positions)
    assert shapely.is_valid(polygons).all()
    row, component = np.repeat(np.arange(n), 300), rng.integers(0, k, 300 * n)
    spread = np.linalg.cholesky(positions.scale_m2[row, component])
    place_m = positions.component_en_m[row, component] + np.einsum(
        "nij,nj->ni", spread, 1.5 * rng.normal(size=(len(row), 2))
    )
    lat, lon = FRAME.geodetic(place_m, 0.0)
    for column, level in enumerate(LEVELS):
        inside = shapely.contains_xy(polygons[row, column], lon, lat)
        assert (inside != positions.take(row).covers(place_m, level)).mean() < 0.02


def test_the_region_of_a_gaussian_is_its_ellipse() -> None:
    positions = mixture([1.0], np.array([[[20e3, -10e3]]]), [100.0], freedom=np.inf)
    for polygons, level in zip(drawn(positions)[0], LEVELS, strict=True):
        (circle,) = in_metres(polygons).geoms
        radius_m = np.hypot(*(shapely.get_coordinates(circle) - [20e3, -10e3]).T)
        np.testing.assert_allclose(radius_m, 100 * np.sqrt(chi2(2).ppf(level)), rtol=0.02)


def test_two_places_have_two_parts_and_the_smaller_region_one() -> None:
    positions = mixture([0.9, 0.1], np.array([[[0.0, 0.0], [30e3, 5e3]]]), [100.0, 100.0])
    half, most = drawn(positions)[0]
    assert len(half.geoms) == 1
    assert len(most.geoms) == 2
    assert half.within(most)
    assert all(part.exterior.is_ccw for part in most.geoms)


def test_a_ring_has_a_hole() -> None:
    angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    positions = mixture([1 / 24] * 24, 3000 * np.stack([np.cos(angle), np.sin(angle)], -1)[None], [300.0] * 24)
    for polygons in drawn(positions)[0]:
        (ring,) = in_metres(polygons).geoms
        assert len(ring.interiors) == 1
        assert not ring.contains(shapely.Point(0, 0))
        assert ring.contains(shapely.Point(3000, 0))
        assert not ring.interiors[0].is_ccw


def test_thin_solutions_far_apart_stay_whole() -> None:
    """Each 20 m wide and 20 km long: no grid that held both could resolve them."""
    centre_m = np.array([[[0.0, 0.0], [40e3, 10e3]]])
    turned = np.array([[np.cos(0.3), -np.sin(0.3)], [np.sin(0.3), np.cos(0.3)]])
    scale_m2 = np.stack([turned @ np.diag([5e3**2, 5.0**2]) @ turned.T, np.diag([5.0**2, 5e3**2])])[None]
    positions = MixturePositions.of_components(np.log([[0.6, 0.4]]), centre_m, scale_m2, np.full((1, 2), np.inf))
    for polygons, level in zip(drawn(positions)[0], LEVELS, strict=True):
        assert len(polygons.geoms) == 2
        assert in_metres(polygons).area == pytest.approx(positions.region_area_m2(level)[0], rel=0.06)


def test_without_a_position_there_is_no_region() -> None:
    positions = mixture([1.0, 1.0], np.zeros((2, 2, 2)), [10.0, 20.0])
    log_weight = np.array([[-np.inf, -np.inf], [0.0, 0.0]])
    gone = MixturePositions.of_components(log_weight, positions.component_en_m, positions.scale_m2, positions.freedom)
    assert shapely.is_empty(drawn(gone)).tolist() == [[True, True], [False, False]]


@pytest.mark.parametrize("lon", [180.0, -179.9, 179.9])
def test_regions_are_split_at_the_180th_meridian(lon: float) -> None:
    frame = LocalFrame(-17.0, lon)
    positions = mixture([1.0], np.zeros((1, 1, 2)), [8e3])
    whole = drawn(positions, frame)[0, 1]
    assert len(whole.geoms) == 1
    split = within_180(whole)
    assert len(split.geoms) == 2
    assert split.is_valid
    west, _, east, _ = split.bounds
    assert (west, east) == (-180, 180)
    assert split.area == pytest.approx(whole.area, rel=1e-6)
    assert max(part.bounds[2] - part.bounds[0] for part in split.geoms) < 1
    elsewhere = drawn(positions)[0, 1]
    assert within_180(elsewhere) is elsewhere
