import io
import pickle
import re
import zipfile
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from triangulation_pipeline.calibration import SiteCalibration
from triangulation_pipeline.measurements import Measurements
from triangulation_pipeline.model import checkpoint as checkpoint_module
from triangulation_pipeline.model.architectures import build_locator
from triangulation_pipeline.model.checkpoint import (
    FORMAT,
    Checkpoint,
    DatasetReference,
    dump,
    load,
    read_checkpoint,
    write_checkpoint,
)
from triangulation_pipeline.model.predict import locate, locate_samples, predict
from triangulation_pipeline.model.spec import Architecture, LocatorSpec, RegressionConfig, TriangulationConfig
from triangulation_pipeline.network import NORTH_WEST_ITALY, random_network
from triangulation_pipeline.physics.dataset_spec import ROWS_PER_LAYOUT, DatasetSpec
from triangulation_pipeline.physics.layout import Layout, Layouts
from triangulation_pipeline.physics.scenario import Scenario
from triangulation_pipeline.physics.simulator import simulate
from triangulation_pipeline.samples import Samples

HOME = Layout(NORTH_WEST_ITALY, Scenario())
CONFIGS = {Architecture.triangulation: TriangulationConfig(), Architecture.regression: RegressionConfig()}


def samples(layout: Layout = HOME) -> Samples:
    return simulate(DatasetSpec(layout.network, layout.scenario, 50, seed=0))


def some_checkpoint(
    architecture: Architecture = Architecture.triangulation, layout: Layout | None = HOME
) -> Checkpoint:
    """With a random number in every weight."""
    parts = {} if layout is None else {"network": layout.network, "scenario": layout.scenario}
    spec = LocatorSpec(config=CONFIGS[architecture], **parts)
    generator = torch.Generator().manual_seed(1)
    weights = build_locator(spec).state_dict()
    return Checkpoint(
        spec=spec,
        weights={name: torch.randn(tensor.shape, generator=generator) * 0.1 for name, tensor in weights.items()},
        epoch=3,
        metrics={"val_loss": 1.25, "val_rmse_good_geom_m": None, "epoch": 3},
        config={"epochs": 4, "min_snr_db": None},
        dataset=DatasetReference(dataset_id="x", sha256="y"),
    )


@pytest.fixture(scope="module")
def content() -> bytes:
    return write_checkpoint(some_checkpoint())


@pytest.mark.parametrize("layout", [HOME, None], ids=["of a network", "of random layouts"])
@pytest.mark.parametrize("architecture", list(Architecture))
def test_round_trip(architecture: Architecture, layout: Layout | None) -> None:
    checkpoint = some_checkpoint(architecture, layout)
    back = read_checkpoint(write_checkpoint(checkpoint))
    assert back.weights.keys() == checkpoint.weights.keys()
    assert all(torch.equal(back.weights[name], tensor) for name, tensor in checkpoint.weights.items())
    assert replace(back, weights={}) == replace(checkpoint, weights={})
    assert back.spec.layout == layout
    assert not back.locator().training
    model, batch = checkpoint.locator(), samples()
    assert np.array_equal(predict(back.locator(), HOME, batch).en_m, predict(model, HOME, batch).en_m)


def test_a_checkpoint_locates_by_its_own_layout_or_by_any_other() -> None:
    """The truth is not looked at."""
    checkpoint, batch = some_checkpoint(), samples()
    measured = Measurements(**{field.name: getattr(batch, field.name) for field in fields(Measurements)})
    found = locate(checkpoint, measured)
    np.testing.assert_array_equal(found.en_m, predict(checkpoint.locator(), HOME, batch).en_m)
    other = Layout(random_network(5, seed=1), Scenario())
    elsewhere = samples(other)
    np.testing.assert_array_equal(
        locate(checkpoint, elsewhere, other).en_m, predict(checkpoint.locator(), other, elsewhere).en_m
    )
    with pytest.raises(ValueError, match="network 'north-west-italy' has 7 sites, the measurements are of 5 receivers"):
        locate(checkpoint, elsewhere)
    of_none = some_checkpoint(layout=None)
    np.testing.assert_array_equal(locate(of_none, elsewhere, other).en_m, locate(checkpoint, elsewhere, other).en_m)
    with pytest.raises(ValueError, match="trained on random layouts: give locate the layout that measured the rows"):
        locate(of_none, measured)


def test_samples_of_random_layouts_are_each_located_by_their_own() -> None:
    """In any order."""
    dataset = DatasetSpec(None, Scenario(), 3 * ROWS_PER_LAYOUT, 1, Layouts.random)
    whole = simulate(dataset)
    some = whole.take(np.random.default_rng(0).permutation(len(whole))[:60])
    checkpoint = some_checkpoint(layout=None)
    found = locate_samples(checkpoint, dataset, some)
    for layout, rows in dataset.by_layout(some):
        alone = locate(checkpoint, some.take(rows).of_sites(len(layout.network.sites)), layout)
        np.testing.assert_allclose(found.en_m[rows], alone.en_m, rtol=1e-4, atol=0.1)
    assert found.exists.any(1).all()


def test_what_is_known_of_the_sites_is_taken_off_first() -> None:
    """By the network file, or as it is given."""
    sites = tuple(site.model_copy(update={"gain_offset_db": 4.0}) for site in NORTH_WEST_ITALY.sites)
    louder = Layout(NORTH_WEST_ITALY.model_copy(update={"sites": sites}), Scenario())
    checkpoint, batch = some_checkpoint(), samples()
    shown = replace(batch, power_dbm=batch.power_dbm + np.float32(4))
    plain, by_file = locate(checkpoint, batch), locate(checkpoint, shown, louder)
    np.testing.assert_allclose(by_file.en_m, plain.en_m, rtol=1e-3, atol=1.0)
    known = SiteCalibration.of_network(louder.network)
    np.testing.assert_array_equal(locate(checkpoint, shown, calibration=known).en_m, by_file.en_m)


@settings(max_examples=30)
@given(garbage=st.binary(max_size=200))
def test_garbage_is_refused(garbage: bytes) -> None:
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        read_checkpoint(garbage)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.9, 0.999])
def test_a_cut_file_is_refused(content: bytes, share: float) -> None:
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        read_checkpoint(content[: int(len(content) * share)])


def test_damaged_bytes_raise_nothing_but_a_value_error(content: bytes) -> None:
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(100):
        damaged = bytearray(content)
        # The pickled description lies at the front, the tensors behind it.
        damaged[rng.integers(0, 8000)] = rng.integers(0, 256)
        try:
            read_checkpoint(bytes(damaged))
        except ValueError:
            refused += 1
    assert refused > 10


def test_another_format_is_refused() -> None:
    with pytest.raises(ValueError, match="checkpoint format must be 'triangulation-checkpoint/3', this is 'other/2'"):
        read_checkpoint(dump({"format": "other/2"}))
    with pytest.raises(ValueError, match="this is None"):
        read_checkpoint(dump({"state_dict": {}}))
    buffer = io.BytesIO()
    torch.save([1, 2], buffer)
    with pytest.raises(ValueError, match="not a checkpoint: holds a list"):
        read_checkpoint(buffer.getvalue())


@pytest.mark.parametrize("number", [1, 2])
def test_a_former_format_says_what_to_do(content: bytes, number: int) -> None:
    told = (
        f"checkpoint has the format 'triangulation-checkpoint/{number}' of a locator that knows only the sites it was "
        "trained on, and this program does not compute that any more: train the model again"
    )
    with pytest.raises(ValueError, match=f"^{told}$"):
        read_checkpoint(dump(load(content) | {"format": f"triangulation-checkpoint/{number}"}))


def test_a_locator_of_another_version_is_refused(content: bytes) -> None:
    document = load(content)
    for version, remedy in ((4, "update the program"), (1, "train the model again"), ("3", "train the model again")):
        told = f"checkpoint is of locator version {version!r}, and this program computes version 3: {remedy}"
        with pytest.raises(ValueError, match=f"^{told}$"):
            read_checkpoint(dump(document | {"locator_version": version}))


def changed(value: Any) -> Any:
    """Another value that the constant may have."""
    if isinstance(value, dict):
        return {name: changed(inner) for name, inner in value.items()}
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 2
    if isinstance(value, float):
        return value * 1.01
    return [*value[:-1], value[-1] + 0.01]


@pytest.mark.parametrize("architecture", list(Architecture))
def test_each_constant_decides_predictions_and_so_the_digest(architecture: Architecture) -> None:
    checkpoint = some_checkpoint(architecture)
    constants = checkpoint.spec.config.model_dump()
    start = constants["start"]
    others = [constants | {name: changed(constants[name])} for name in constants.keys() - {"architecture", "start"}]
    others += [constants | {"start": start | {name: changed(value)}} for name, value in start.items()]
    specs = [checkpoint.spec.model_copy(update={"config": type(checkpoint.spec.config)(**each)}) for each in others]
    digests = {replace(checkpoint, spec=spec).weights_digest for spec in (checkpoint.spec, *specs)}
    assert len(digests) == len(others) + 1


@pytest.mark.parametrize(
    ("constants", "says"),
    [
        ({"embedding": 33}, r"embedding \(33\) must be a multiple of heads \(2\)"),
        ({"embedding": 2000}, "embedding"),
        ({"start": {"doubt_sigmas": float("nan")}}, "doubt_sigmas"),
        ({"start": {"hypotheses": 0}}, "hypotheses"),
    ],
)
def test_constants_that_no_locator_can_have_are_refused(content: bytes, constants: dict[str, Any], says: str) -> None:
    document = load(content)
    spec = document["spec"] | {"config": document["spec"]["config"] | constants}
    with pytest.raises(ValueError, match=f"checkpoint is incomplete: .*{says}"):
        read_checkpoint(dump(document | {"spec": spec}))


def test_a_network_without_a_scenario_is_refused(content: bytes) -> None:
    document = load(content)
    for name in ("network", "scenario"):
        with pytest.raises(ValueError, match=r"checkpoint is incomplete: .*must both be given, or both be left out"):
            read_checkpoint(dump(document | {"spec": document["spec"] | {name: None}}))


class Payload:
    """Creates a file when unpickled by an unguarded reader."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_pickled_payload_is_never_executed(tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    zipped = dump({"format": FORMAT, "spec": Payload(mark)})
    bare = pickle.dumps({"format": FORMAT, "spec": Payload(mark)})
    # The payload does work where nobody guards.
    pickle.loads(bare)
    assert mark.exists()
    mark.unlink()
    for content in (zipped, bare):
        with pytest.raises(ValueError, match="not a readable checkpoint"):
            read_checkpoint(content)
        assert not mark.exists()


@pytest.mark.parametrize("name", ["locator_version", "spec", "weights", "epoch", "metrics", "config", "dataset"])
def test_a_missing_key_is_refused(content: bytes, name: str) -> None:
    document = load(content)
    del document[name]
    with pytest.raises(ValueError, match=f"checkpoint is incomplete: .*{name}"):
        read_checkpoint(dump(document))


@pytest.mark.parametrize("architecture", list(Architecture))
def test_digest_of_weights_is_of_what_decides_predictions(architecture: Architecture) -> None:
    checkpoint = some_checkpoint(architecture)
    digest = checkpoint.weights_digest
    assert re.fullmatch("[0-9a-f]{64}", digest)
    assert read_checkpoint(write_checkpoint(checkpoint)).weights_digest == digest
    same = {
        "epoch": 9,
        "metrics": {"val_loss": 2.0, "epoch_seconds": 7.0},
        "config": {"job_name": "another"},
        "dataset": DatasetReference(dataset_id="another", sha256="another"),
        "weights": dict(reversed(checkpoint.weights.items())),
    }
    for name, value in same.items():
        assert replace(checkpoint, **{name: value}).weights_digest == digest, name


@pytest.mark.parametrize("architecture", list(Architecture))
def test_each_part_that_decides_predictions_changes_the_digest(
    architecture: Architecture, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = some_checkpoint(architecture)
    digests = {checkpoint.weights_digest}
    for name, tensor in checkpoint.weights.items():
        other = tensor.clone().reshape(-1)
        other[-1] = torch.nextafter(other[-1], torch.tensor(torch.inf))
        changed = checkpoint.weights | {name: other.reshape(tensor.shape)}
        digests.add(replace(checkpoint, weights=changed).weights_digest)
    assert len(digests) == len(checkpoint.weights) + 1
    # The same bytes by another name, or as another type.
    name, tensor = next(iter(checkpoint.weights.items()))
    others = {key: value for key, value in checkpoint.weights.items() if key != name}
    digests.add(replace(checkpoint, weights=others | {f"{name}_": tensor}).weights_digest)
    digests.add(replace(checkpoint, weights=others | {name: tensor.view(torch.int32)}).weights_digest)
    digests.add(replace(checkpoint, weights=others | {name: tensor[None]}).weights_digest)
    assert len(digests) == len(checkpoint.weights) + 4
    first, *rest = NORTH_WEST_ITALY.sites
    moved = first.model_copy(update={"lat": first.lat + 1e-6})
    network = NORTH_WEST_ITALY.model_copy(update={"sites": (moved, *rest)})
    for field, value in (("network", network), ("scenario", Scenario(nlos_probability=0.2))):
        spec = checkpoint.spec.model_copy(update={field: value})
        digests.add(replace(checkpoint, spec=spec).weights_digest)
    digests.add(replace(checkpoint, spec=some_checkpoint(architecture, layout=None).spec).weights_digest)
    other = next(each for each in Architecture if each is not architecture)
    spec = checkpoint.spec.model_copy(update={"config": CONFIGS[other]})
    digests.add(replace(checkpoint, spec=spec).weights_digest)
    monkeypatch.setattr(checkpoint_module, "LOCATOR_VERSION", -1)
    digests.add(checkpoint.weights_digest)
    assert len(digests) == len(checkpoint.weights) + 9


def test_a_surplus_key_and_a_wrong_spec_are_refused(content: bytes) -> None:
    document = load(content)
    with pytest.raises(ValueError, match="surplus"):
        read_checkpoint(dump(document | {"surplus": 1}))
    with pytest.raises(ValueError, match="architecture"):
        read_checkpoint(dump(document | {"spec": document["spec"] | {"config": {"architecture": "resnet"}}}))
    with pytest.raises(ValueError, match=r"checkpoint is incomplete: .*layers"):
        read_checkpoint(dump(document | {"spec": document["spec"] | {"layers": 3}}))
    config = document["spec"]["config"] | {"layers": 3}
    with pytest.raises(ValueError, match=r"checkpoint is incomplete: .*layers"):
        read_checkpoint(dump(document | {"spec": document["spec"] | {"config": config}}))


def some_matrix(weights: dict[str, torch.Tensor]) -> str:
    """The name of a tensor with two sides of different length."""
    return next(name for name, tensor in weights.items() if tensor.ndim == 2 and tensor.shape[0] != tensor.shape[1])


def test_weights_that_do_not_fit_are_refused() -> None:
    checkpoint = some_checkpoint()
    name = some_matrix(checkpoint.weights)
    without = {key: tensor for key, tensor in checkpoint.weights.items() if key != name}
    for weights in (
        without,
        checkpoint.weights | {name: torch.zeros(3, 3)},
        some_checkpoint(Architecture.regression).weights,
    ):
        with pytest.raises(ValueError, match="do not fit its architecture"):
            replace(checkpoint, weights=weights).locator()


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_compressed_file_is_refused_unread(content: bytes, compression: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of kilobytes that would become gigabytes."""
    packed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as whole, zipfile.ZipFile(packed, "w", compression) as archive:
        for name in whole.namelist():
            archive.writestr(name, whole.read(name))
    monkeypatch.setattr(torch, "load", None)
    with pytest.raises(ValueError, match=r"not a readable checkpoint .*: it holds something compressed"):
        read_checkpoint(packed.getvalue())


@pytest.mark.parametrize(("field", "value"), [("file_size", 3), ("compress_type", zipfile.ZIP_DEFLATED)])
def test_a_list_of_contents_that_hides_what_is_compressed_is_refused(
    content: bytes, field: str, value: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its method or by its sizes: either is enough."""
    archive = zipfile.ZipFile(buffer := io.BytesIO(content), "a")
    setattr(max(archive.infolist(), key=lambda entry: entry.file_size), field, value)
    archive._didModify = True
    archive.close()
    monkeypatch.setattr(torch, "load", None)
    with pytest.raises(ValueError, match=r"not a readable checkpoint .*: it holds something compressed"):
        read_checkpoint(buffer.getvalue())


def test_entries_that_share_their_bytes_are_refused(content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a list of contents can say: a hundred times the same bytes, for the price of a line each."""
    archive = zipfile.ZipFile(buffer := io.BytesIO(content), "a")
    largest = max(archive.infolist(), key=lambda entry: entry.file_size)
    archive.filelist += [largest] * 100
    archive._didModify = True
    archive.close()
    monkeypatch.setattr(torch, "load", None)
    with pytest.raises(ValueError, match=r"not a readable checkpoint .*: it holds more than its size"):
        read_checkpoint(buffer.getvalue())


@pytest.mark.parametrize(
    "inside",
    [
        lambda tensor: tensor,
        lambda tensor: {"a": [1, (tensor,)]},
        lambda tensor: {tensor},
        lambda tensor: {tensor: 1},
    ],
    ids=["alone", "in a tuple in a list", "in a set", "as a key"],
)
def test_a_tensor_that_repeats_what_is_stored_is_refused(inside: Callable[[torch.Tensor], Any]) -> None:
    repeated = torch.zeros(1).expand(10**12)
    content = dump({"format": FORMAT, "spec": inside(repeated)})
    assert len(content) < 5000
    with pytest.raises(ValueError, match="holds a tensor of 1,000,000,000,000 values, more than its file"):
        load(content)


def test_tensors_are_held_against_the_bytes_of_the_file() -> None:
    """A thousand numbers of eight bytes each are more than two thousand bytes; of one byte each they are not."""
    small, large = (dump({"a": torch.zeros(1, dtype=t).expand(1000)}) for t in (torch.int8, torch.float64))
    assert 1000 < len(small) < 8000
    assert load(small)["a"].shape == (1000,)
    with pytest.raises(ValueError, match=r"holds a tensor of 1,000 values, more than its file"):
        load(large)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    "odd",
    [
        lambda: torch.sparse_coo_tensor(torch.tensor([[0], [1]]), torch.ones(1), (10**6, 10**6), check_invariants=True),
        lambda: torch.zeros(10, device="meta"),
        lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
        lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    ],
    ids=["sparse", "without storage", "quantized", "nested"],
)
def test_other_kinds_of_tensors_are_refused(odd: Callable[[], torch.Tensor]) -> None:
    content = dump({"format": FORMAT, "spec": odd()})
    with pytest.raises(ValueError, match="not a checkpoint: holds a tensor that is no plain one"):
        load(content)


def test_a_list_that_holds_itself_is_looked_at_once() -> None:
    ring: list[Any] = []
    ring.append(ring)
    with pytest.raises(ValueError, match="this is None"):
        read_checkpoint(dump({"ring": ring}))


def test_a_file_of_another_pickle_protocol_is_read_without_a_warning() -> None:
    torch.save({"a": torch.ones(2)}, buffer := io.BytesIO(), pickle_protocol=3)
    assert load(buffer.getvalue())["a"].tolist() == [1, 1]


def test_what_a_gpu_wrote_is_read_where_there_is_none() -> None:
    moved = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(dump({"a": torch.ones(2)}))) as whole, zipfile.ZipFile(moved, "w") as archive:
        for name in whole.namelist():
            archive.writestr(name, whole.read(name).replace(b"\x03\0\0\0cpu", b"\x06\0\0\0cuda:0"))
    assert b"cuda:0" in moved.getvalue()
    assert load(moved.getvalue())["a"].device.type == "cpu"


def test_weights_are_held_against_the_spec_before_use(content: bytes) -> None:
    document = load(content)
    state = torch.get_rng_state()
    name = some_matrix(document["weights"])
    for weights in (
        document["weights"] | {name: document["weights"][name][:1].expand_as(document["weights"][name]).T},
        document["weights"] | {name: document["weights"][name].double()},
        document["weights"] | {"surplus": torch.zeros(1)},
        {key: value for key, value in document["weights"].items() if key != name},
    ):
        with pytest.raises(ValueError, match="do not fit its architecture triangulation: 1 are missing, unknown or"):
            read_checkpoint(dump(document | {"weights": weights}))
    for weights in ([], {name: 1.0}, None):
        with pytest.raises(ValueError, match="weights must be tensors by name"):
            read_checkpoint(dump(document | {"weights": weights}))
    read_checkpoint(content)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_tensors_that_are_not_finite_are_named(value: float) -> None:
    checkpoint = some_checkpoint()
    assert checkpoint.non_finite() == []
    broken = {*list(checkpoint.weights)[::5]}
    weights = {name: tensor.clone() for name, tensor in checkpoint.weights.items()}
    for name in broken:
        weights[name].view(-1)[-1] = value
    assert len(broken) > 3
    assert {*replace(checkpoint, weights=weights).non_finite()} == broken
