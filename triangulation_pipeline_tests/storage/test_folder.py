"""The object store in a folder: its files, and what a crash or a full disk leaves of them."""

import hashlib
import os
import stat
from pathlib import Path
from typing import NoReturn

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from triangulation_pipeline.storage import s3
from triangulation_pipeline.storage.engine import open_database
from triangulation_pipeline.storage.errors import StorageError
from triangulation_pipeline.storage.objects import FolderStore
from triangulation_pipeline.storage.settings import read_settings
from triangulation_pipeline.storage.stores import open_store
from triangulation_pipeline_tests.storage.conftest import keys_of

KEY = "checkpoints/job-1/state/3-abcdef12.pth"


@pytest.fixture(autouse=True)
def no_client(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> NoReturn:
        raise AssertionError("a folder asks for no client")

    monkeypatch.setattr(s3, "make_client", refuse)


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


@pytest.mark.parametrize("link", ["checkpoints", "checkpoints/job-1", KEY])
def test_no_link_leads_out_of_the_folder(folder: FolderStore, tmp_path: Path, link: str) -> None:
    """Neither to read nor to write; and no digest of what lies elsewhere is told."""
    outside = tmp_path / "outside"
    (outside / "state").mkdir(parents=True)
    secret = outside / "state" / Path(KEY).name
    secret.write_bytes(b"secret")
    path, target = folder.root / link, secret
    for _ in range(len(Path(KEY).parts) - len(Path(link).parts)):
        target = target.parent
    path.parent.mkdir(parents=True)
    path.symlink_to(target)
    digest = hashlib.sha256(b"secret").hexdigest()
    before = sorted(outside.rglob("*"))
    for act in (
        lambda: folder.get(KEY, digest),
        lambda: folder.get(KEY, "0" * 64),
        lambda: folder.put(KEY, b"mine"),
        *((lambda: folder.delete(KEY),) if link != KEY else ()),
    ):
        with pytest.raises(StorageError, match="is a symbolic link, and none is followed") as told:
            act()
        assert digest not in str(told.value)
    assert keys_of(folder) == []
    assert sorted(outside.rglob("*")) == before
    assert secret.read_bytes() == b"secret"
    if link == KEY:
        folder.delete(KEY)  # the link itself
        assert not path.is_symlink()
        assert secret.exists()


def test_the_folder_itself_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "objects").symlink_to("disk")
    store = open_store(tmp_path / "objects")
    stored = store.put(KEY, b"data")
    assert stored.location == str(tmp_path / "objects" / KEY)  # wherever the link will lead
    assert store.get(KEY, stored.sha256) == b"data"
    assert keys_of(store) == [KEY]


def test_a_location_is_an_absolute_path_inside_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = FolderStore(Path("objects"))
    assert store.root == tmp_path / "objects"
    assert store.put("a/b", b"data").location == store.location("a/b") == str(tmp_path / "objects" / "a" / "b")
    assert store.key(str(tmp_path / "objects" / "a" / "b")) == "a/b"
    for elsewhere in (tmp_path / "objects2" / "a", tmp_path / "a", "objects/a/b"):
        with pytest.raises(ValueError, match=rf"is no place in the object store {tmp_path}/objects$"):
            store.key(str(elsewhere))
    with pytest.raises(ValueError, match="an object's key must be"):
        store.key(str(tmp_path / "objects"))


def test_a_folder_is_no_object_to_delete(folder: FolderStore) -> None:
    stored = folder.put("a/b", b"data")
    with pytest.raises(StorageError, match=rf"^object 'a' cannot be deleted under {folder.root}: Is a directory$"):
        folder.delete("a")
    assert folder.get("a/b", stored.sha256) == b"data"
    folder.delete("c/d")  # neither is there


def test_a_link_is_no_object_and_leads_to_none(folder: FolderStore, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "file").write_bytes(b"secret")
    folder.put("a/b", b"data")
    (folder.root / "a" / "c").symlink_to(tmp_path / "outside" / "file")
    (folder.root / "d").symlink_to(tmp_path / "outside")
    (folder.root / "e").symlink_to(folder.root / "a")
    assert keys_of(folder) == ["a/b"]
    with pytest.raises(StorageError, match="is a symbolic link, and none is followed"):
        folder.delete("d/file")
    assert (tmp_path / "outside" / "file").exists()


def test_what_is_no_file_is_not_read(folder: FolderStore) -> None:
    (folder.root / "a").mkdir(parents=True)
    os.mkfifo(folder.root / "a" / "pipe")
    for key in ("a/pipe", "a"):
        with pytest.raises(StorageError, match=f"object '{key}' cannot be read .*: "):
            folder.get(key, "0" * 64)
    assert keys_of(folder) == []


def test_folders_that_are_made_are_for_their_owner_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Database, objects and what lies beside them; a folder that was there keeps its rights."""
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    for name in ("TRIANGULATION_DATABASE_URL", "TRIANGULATION_OBJECT_STORE"):
        monkeypatch.delenv(name, raising=False)
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o775)
    mask = os.umask(0o022)
    try:
        place = read_settings()
        open_store(place.object_store)
        open_database(place.database_url).dispose()
        open_store(shared).put(KEY, b"data")
        open_database(f"sqlite:///{tmp_path}/new/deep/t.db").dispose()
    finally:
        os.umask(mask)
    for made in (".dagster", ".dagster/objects", "new", "new/deep"):
        assert stat.S_IMODE((tmp_path / made).stat().st_mode) == 0o700, made
    assert stat.S_IMODE(shared.stat().st_mode) == 0o775
    assert stat.S_IMODE((shared / KEY).stat().st_mode) == 0o644


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="file/objects cannot be opened: Not a directory"):
        open_store(tmp_path / "file" / "objects")
    with pytest.raises(StorageError, match=r"object 'a' cannot be stored .*: Not a directory"):
        FolderStore(tmp_path / "file" / "objects").put("a", b"")
    store = open_store(tmp_path / "objects")
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
