"""The object store in a folder: its files, and what a crash or a full disk leaves of them."""

import hashlib
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from triangulation_pipeline.storage.errors import StorageError
from triangulation_pipeline.storage.objects import FolderStore, open_store

KEY = "checkpoints/job-1/state/3-abcdef12.pth"


def no_client() -> None:
    raise AssertionError("a folder asks for no client")


def files(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file()]


@pytest.fixture
def folder(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "objects")


@pytest.mark.parametrize("damage", ["truncated", "bit flipped", "emptied"])
def test_damage_is_found_out(folder: FolderStore, damage: str) -> None:
    stored = folder.put(KEY, b"0123456789" * 1000)
    path = Path(stored.location)
    data = bytearray(path.read_bytes())
    data[5000] ^= 4
    path.write_bytes({"truncated": path.read_bytes()[:-1], "bit flipped": bytes(data), "emptied": b""}[damage])
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(StorageError, match=f"'{KEY}' is damaged: its digest is {found}, expected is {stored.sha256}"):
        folder.get(KEY, stored.sha256)


def test_a_write_that_fails_leaves_the_old_object_and_nothing_else(
    folder: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = folder.put(KEY, b"old")

    def disk_is_full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", disk_is_full)
        with pytest.raises(StorageError, match=f"object '{KEY}' cannot be stored .*: No space left on device"):
            folder.put(KEY, b"new")
    assert files(folder.root) == [Path(stored.location)]
    assert folder.get(KEY, stored.sha256) == b"old"


def test_an_object_is_on_disk_before_it_has_its_name(folder: FolderStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order that survives a crash: data, name, folder (and the folders made for it)."""
    happened: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def seen_fsync(descriptor: int) -> None:
        happened.append(f"fsync {'folder' if os.path.isdir(descriptor) else 'file'}")  # noqa: PTH112
        fsync(descriptor)

    def seen_replace(path: Path, target: Path) -> Path:
        happened.append("name")
        assert path.parent == target.parent
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", seen_fsync)
    monkeypatch.setattr(Path, "replace", seen_replace)
    folder.put("a/b", b"data")
    assert happened == ["fsync file", "name", "fsync folder", "fsync folder"]


def test_a_file_still_being_written_is_no_object(folder: FolderStore) -> None:
    folder.put("a/b", b"")
    (folder.root / "a" / ".0123.tmp").write_bytes(b"half")
    assert folder.list_keys() == ["a/b"]


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="file/objects cannot be opened: Not a directory"):
        open_store(tmp_path / "file" / "objects", no_client)
    with pytest.raises(StorageError, match=r"object 'a' cannot be stored .*: Not a directory"):
        FolderStore(tmp_path / "file" / "objects").put("a", b"")
    store = open_store(tmp_path / "objects", no_client)
    store.put("a/b", b"")
    with pytest.raises(StorageError, match=r"object 'a' cannot be stored .*: Is a directory"):
        store.put("a", b"")
    assert files(tmp_path / "objects") == [tmp_path / "objects" / "a" / "b"]


@settings(max_examples=50)
@given(st.text(alphabet="./a-~\\ \0", max_size=12))
def test_no_key_leads_out_of_the_folder(key: str) -> None:
    store = FolderStore(Path("/root-of-the-store"))
    try:
        location = store.location(key)
    except ValueError:
        return
    assert os.path.normpath(location) == location
    assert location.startswith("/root-of-the-store/")
    assert store.key(location) == key
