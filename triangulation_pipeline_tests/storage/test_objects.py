import hashlib

import pytest

from triangulation_pipeline.storage.errors import StorageError
from triangulation_pipeline.storage.objects import ObjectStore
from triangulation_pipeline_tests.storage.conftest import keys_of

KEY = "checkpoints/job-1/state/3-abcdef12.pth"


def test_an_object_comes_back(store: ObjectStore) -> None:
    data = bytes(range(256)) * 100
    stored = store.put(KEY, data)
    assert stored.sha256 == hashlib.sha256(data).hexdigest()
    assert stored.location == store.location(KEY)
    assert store.get(KEY, stored.sha256) == data
    assert store.key(stored.location) == KEY
    empty = store.put("empty", b"")
    assert empty.sha256 == hashlib.sha256(b"").hexdigest()
    assert store.get("empty", empty.sha256) == b""


def test_keys_are_listed_by_prefix_and_deleted(store: ObjectStore) -> None:
    assert keys_of(store) == []
    for key in ("b/2", "b/1", "a", "bc"):
        store.put(key, b"")
    assert keys_of(store) == ["a", "b/1", "b/2", "bc"]
    assert keys_of(store, "b/") == ["b/1", "b/2"]
    store.delete("b/1")
    store.delete("b/1")
    assert keys_of(store, "b/") == ["b/2"]


def test_a_missing_object_is_named(store: ObjectStore) -> None:
    digest = "0" * 64
    with pytest.raises(StorageError, match=f"object '{KEY}', of digest {digest}, is missing"):
        store.get(KEY, digest)


def test_an_object_is_replaced_whole(store: ObjectStore) -> None:
    first = store.put(KEY, b"first")
    second = store.put(KEY, b"second")
    assert store.get(KEY, second.sha256) == b"second"
    with pytest.raises(StorageError, match=f"'{KEY}' is damaged: its digest is {second.sha256}, .* {first.sha256}"):
        store.get(KEY, first.sha256)


@pytest.mark.parametrize("key", ["a", "9", "_", "A_b.c=d-e", "a/b/c", "a.b/_c", f"{'a' * 200}/b"])
def test_keys_are_names_joined_by_slashes(store: ObjectStore, key: str) -> None:
    stored = store.put(key, b"x")
    assert store.get(key, stored.sha256) == b"x"
    assert keys_of(store) == [key]
    assert store.key(store.location(key)) == key


BAD_KEYS = [
    "",
    "/etc/passwd",
    "../x",
    "a/../../x",
    "a//b",
    "a/",
    "./a",
    ".hidden",
    "a\\b",
    "a\0b",
    "a\n",
    "ä",
    "a b",
    "-a",
    "=a",
    "a/-b",
]


@pytest.mark.parametrize("key", BAD_KEYS)
def test_odd_keys_are_refused(store: ObjectStore, key: str) -> None:
    for act in (lambda: store.put(key, b"x"), lambda: store.get(key, ""), lambda: store.delete(key)):
        with pytest.raises(ValueError, match="an object's key must be"):
            act()


def test_locations_elsewhere_have_no_key(store: ObjectStore) -> None:
    for location in ("/etc/passwd", store.location("a") + "/../../x"):
        with pytest.raises(ValueError, match=r"no place in the object store|an object's key must be"):
            store.key(location)
