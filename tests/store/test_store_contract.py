"""One body of tests for both stores: what a store promises holds on a local disk and on a real S3 server."""

from __future__ import annotations

import multiprocessing
import os
import pickle
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline.base.errors import InputError, StoreAccessError
from pipeline.base.store import ObjectChangedError, Store, open_store
from pipeline.base.store import s3 as s3_module
from pipeline.base.store.object_file import open_object
from pipeline.base.store.protocol import sum_matches

NUM_RACERS = 16


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty store of each kind."""
    if request.param == "s3":
        return open_store(request.getfixturevalue("s3_workspace"))
    return open_store(str(tmp_path / "workspace"))


def keys(store: Store, prefix: str = "") -> list[str]:
    """The keys below *prefix*, as listed."""
    return [info.key for info in store.list(prefix)]


def test_an_empty_store_lists_nothing(store: Store) -> None:
    assert keys(store) == []
    assert keys(store, "deep/down/") == []


def test_list_is_in_the_order_of_keys(store: Store) -> None:
    names = ["b", "a/z", "a/b/c", "a.txt", "a0", "a-", "é", "Z"]
    for name in names:
        store.put(name, b"x")
    assert keys(store) == sorted(names)


def test_list_takes_any_prefix_not_only_folders(store: Store) -> None:
    for name in ["run/step-1/x", "run/step-10/x", "run/step-2/x", "running", "other/run/step-1"]:
        store.put(name, b"x")
    assert keys(store, "run/step-1") == ["run/step-1/x", "run/step-10/x"]
    assert keys(store, "run/step-1/") == ["run/step-1/x"]
    assert keys(store, "run") == ["run/step-1/x", "run/step-10/x", "run/step-2/x", "running"]
    assert keys(store, "run/none") == []


def test_a_neighbour_with_the_same_beginning_is_not_listed(store: Store) -> None:
    beside = open_store(f"{store.uri}-two")
    beside.put("x", b"beside")
    store.put("x", b"mine")
    assert keys(store) == ["x"]
    assert store.read("x") == b"mine"


def test_list_pages_through_more_than_a_thousand(store: Store) -> None:
    names = [f"many/{number:05d}" for number in range(1_005)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: store.put(name, b""), names))
    assert keys(store, "many/") == names


def test_read_returns_what_was_put(store: Store) -> None:
    store.put("folder/key with space+and%41", b"\0bytes\xff")
    assert store.read("folder/key with space+and%41") == b"\0bytes\xff"
    assert keys(store) == ["folder/key with space+and%41"]


def test_stream(store: Store) -> None:
    content = os.urandom(3 << 20)
    store.put("key", content)
    for start in (0, 1, (2 << 20) + 5, len(content) - 1, len(content), len(content) + 50):
        pieces = list(store.stream("key", start))
        assert b"".join(pieces) == content[start:]
        assert all(0 < len(piece) <= 1 << 20 for piece in pieces)
    begun = store.stream("key")
    assert content.startswith(next(begun))
    begun.close()  # type: ignore[attr-defined]
    assert store.read("key") == content
    with pytest.raises(FileNotFoundError):
        next(iter(store.stream("missing")))


def test_read_range(store: Store) -> None:
    store.put("key", b"0123456789")
    assert store.read_range("key", 3, 4) == b"3456"
    assert store.read_range("key", 8, 100) == b"89"
    assert store.read_range("key", 10, 5) == b""
    assert store.read_range("key", 50, 5) == b""
    assert store.read_range("key", 3, 0) == b""


def test_a_missing_key(store: Store, tmp_path: Path) -> None:
    store.put("folder/key", b"x")
    for missing in ("none", "folder", "folder/key/below"):
        assert store.head(missing) is None
        with pytest.raises(FileNotFoundError):
            store.read(missing)
        with pytest.raises(FileNotFoundError):
            store.read_range(missing, 0, 1)
        with pytest.raises(FileNotFoundError):
            store.fetch(missing, tmp_path / "fetched")
        store.delete(missing)
    assert not (tmp_path / "fetched").exists()
    assert keys(store) == ["folder/key"]


def test_head_tells_size_and_an_etag_of_the_content(store: Store) -> None:
    store.put("key", b"one")
    first = store.head("key")
    store.put("key", b"two")
    second = store.head("key")
    assert first is not None
    assert second is not None
    assert (first.key, first.num_bytes) == ("key", 3)
    assert first.etag != second.etag
    assert list(store.list()) == [second]


def test_etags_differ_through_fast_replacements_of_one_size(store: Store) -> None:
    etags = set()
    for number in range(50):
        store.put("key", b"%03d" % number)
        info = store.head("key")
        assert info is not None
        etags.add(info.etag)
    assert len(etags) == 50


def test_put_replaces(store: Store) -> None:
    store.put("key", b"a long first content")
    store.put("key", b"second")
    assert store.read("key") == b"second"
    assert keys(store) == ["key"]


def test_put_if_absent_writes_once(store: Store) -> None:
    assert store.put_if_absent("folder/key", b"first")
    assert not store.put_if_absent("folder/key", b"second")
    assert store.read("folder/key") == b"first"


def _race(arguments: tuple[Store, str, int]) -> bool:
    store, key, number = arguments
    return store.put_if_absent(key, f"content of racer {number}".encode())


@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_put_if_absent_has_one_winner_among_racers(store: Store, kind: str) -> None:
    num_workers = NUM_RACERS if kind == "threads" else 3
    pool = (
        ThreadPoolExecutor(num_workers)
        if kind == "threads"
        else ProcessPoolExecutor(num_workers, mp_context=multiprocessing.get_context("spawn"))
    )
    with pool:
        for key in ("first", "second"):
            won = list(pool.map(_race, [(store, key, number) for number in range(NUM_RACERS)]))
            assert won.count(True) == 1
            assert store.read(key) == f"content of racer {won.index(True)}".encode()


def test_put_if_match_replaces_only_what_was_seen(store: Store) -> None:
    assert not store.put_if_match("key", b"x", '"0123456789abcdef0123456789abcdef"')
    store.put("key", b"one")
    seen = store.head("key")
    assert seen is not None
    assert store.put_if_match("key", b"two", seen.etag)
    assert not store.put_if_match("key", b"three", seen.etag)
    assert store.read("key") == b"two"


def test_put_if_match_has_one_winner_among_racers(store: Store) -> None:
    store.put("key", b"start")
    seen = store.head("key")
    assert seen is not None

    def replace(number: int) -> bool:
        return store.put_if_match("key", b"%d" % number, seen.etag)

    with ThreadPoolExecutor(NUM_RACERS) as pool:
        won = list(pool.map(replace, range(NUM_RACERS)))
    assert won.count(True) == 1
    assert store.read("key") == b"%d" % won.index(True)


def test_put_file_and_fetch(store: Store, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"content" * 1000)
    store.put_file("folder/key", tmp_path / "source")
    store.fetch("folder/key", tmp_path / "new" / "target")
    store.fetch("folder/key", tmp_path / "new" / "target")
    assert (tmp_path / "new" / "target").read_bytes() == b"content" * 1000
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["target"]


def test_put_file_and_fetch_in_parts(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_module, "_WHOLE_BYTES", 6 << 20)
    monkeypatch.setattr(s3_module, "_PART_BYTES", 5 << 20)
    content = os.urandom(12 << 20)  # three parts
    (tmp_path / "source").write_bytes(content)
    store.put_file("key", tmp_path / "source")
    info = store.head("key")
    assert info is not None
    assert info.num_bytes == len(content)
    assert store.uri.startswith("file:") or info.etag.strip('"').endswith("-3")
    store.fetch("key", tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == content
    assert store.read_range("key", (5 << 20) - 3, 6) == content[(5 << 20) - 3 : (5 << 20) + 3]


def test_a_pinned_read_refuses_another_state(store: Store) -> None:
    store.put("key", b"first")
    pinned = store.head("key")
    assert pinned is not None
    reads = (
        lambda: store.read("key", pinned.etag),
        lambda: store.read_range("key", 0, 5, pinned.etag),
        lambda: store.read_with_sum("key", pinned.etag)[0],
    )
    assert [read() for read in reads] == [b"first"] * 3
    store.put("key", b"other")
    for read in reads:
        with pytest.raises(ObjectChangedError):
            read()
    store.delete("key")
    for read in reads:
        with pytest.raises(FileNotFoundError):
            read()


def test_incoming_is_an_object_when_the_block_ends(store: Store) -> None:
    with store.incoming("folder/key") as path:
        path.write_bytes(b"content")
        assert keys(store) == []
    assert store.read("folder/key") == b"content"
    assert keys(store) == ["folder/key"]


def test_incoming_is_nothing_when_the_block_raises(store: Store) -> None:
    store.put("key", b"before")

    def half() -> None:
        with store.incoming("key") as path:
            path.write_bytes(b"half")
            raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        half()
    assert store.read("key") == b"before"
    assert store.sweep() == 0


def test_parts_in_any_order_make_one_object(store: Store) -> None:
    content = os.urandom((10 << 20) + 3)
    size = 5 << 20
    with store.multipart("folder/key", size) as parts:
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(lambda number: parts.put_part(number, content[number * size :][:size]), [2, 0, 1]))
        parts.put_part(1, content[size : 2 * size])
        assert keys(store) == []
        parts.complete()
    assert store.read("folder/key") == content
    assert store.sweep() == 0


def test_parts_without_complete_leave_nothing(store: Store) -> None:
    def half() -> None:
        with store.multipart("key", 5 << 20) as parts:
            parts.put_part(0, b"x")
            raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        half()
    assert keys(store) == []
    assert store.sweep() == 0


def test_sweep_removes_what_killed_writers_left(store: Store) -> None:
    store.put("mine/whole", b"x")
    left = [store.multipart(key, 5 << 20) for key in ("mine/deep/one", "mine/two", "other/three")]
    for parts in left:
        parts.put_part(0, b"half")
    assert store.sweep("mine/", older_than_seconds=3600) == 0
    assert store.sweep("mine/") == 2
    assert store.sweep("mine/") == 0
    assert keys(store) == ["mine/whole"]
    left[2].complete()
    assert keys(store) == ["mine/whole", "other/three"]


def test_what_a_store_says_of_content_fits_it(store: Store) -> None:
    content = os.urandom((5 << 20) + 1000)
    store.put("whole", content)
    with store.multipart("parts", 5 << 20) as parts:
        parts.put_part(0, content[: 5 << 20])
        parts.put_part(1, content[5 << 20 :])
        parts.complete()
    for key in ("whole", "parts"):
        data, found = store.read_with_sum(key)
        assert data == content
        if store.uri.startswith("file:"):
            assert found is store.content_sum(key) is None
            continue
        for expected in (found, store.content_sum(key), store.content_sum(key, exact=True)):
            assert expected is not None
            assert sum_matches(expected, [content[:1000], content[1000:]])
            assert not sum_matches(expected, [content[:-1], bytes([content[-1] ^ 1])])


def test_delete_twice(store: Store) -> None:
    store.put("key", b"x")
    store.delete("key")
    store.delete("key")
    assert store.head("key") is None
    assert keys(store) == []


@pytest.mark.parametrize("key", ["../out", "a/../../out", "/absolute", "", "a/..", "nul\0"])
def test_keys_that_point_outside_are_refused(store: Store, key: str, tmp_path: Path) -> None:
    for call in (
        lambda: store.read(key),
        lambda: store.put(key, b"x"),
        lambda: store.delete(key),
        lambda: store.head(key),
        lambda: store.put_if_absent(key, b"x"),
        lambda: store.fetch(key, tmp_path / "fetched"),
    ):
        with pytest.raises(InputError):
            call()
    if key:
        with pytest.raises(InputError):
            list(store.list(key))


def test_a_store_survives_pickling(store: Store) -> None:
    store.put("key", b"x")
    again = pickle.loads(pickle.dumps(store))
    assert again.uri == store.uri == open_store(store.uri).uri
    assert again.read("key") == b"x"


def test_check_writable_leaves_nothing(store: Store) -> None:
    store.check_writable()
    assert keys(store) == []


def test_an_object_opens_as_a_seekable_file(store: Store) -> None:
    store.put("key", bytes(range(200)))
    with open_object(store, "key") as file:
        file.seek(-5, 2)
        assert file.read() == bytes(range(195, 200))
        file.seek(10)
        assert file.read(3) == bytes([10, 11, 12])
    with pytest.raises(FileNotFoundError):
        open_object(store, "none")


def test_nothing_half_written_is_ever_seen(store: Store) -> None:
    contents = [bytes([number]) * 300_000 for number in range(4)]
    store.put("key", contents[0])

    def write(number: int) -> None:
        for _ in range(5):
            store.put("key", contents[number])

    with ThreadPoolExecutor(4) as pool:
        writers = [pool.submit(write, number) for number in range(4)]
        while not all(writer.done() for writer in writers):
            assert store.read("key") in contents
        assert [writer.result() for writer in writers] == [None] * 4


def test_a_local_store_below_a_regular_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    store = open_store(str(tmp_path / "file" / "workspace"))
    assert keys(store) == []
    for call in (store.check_writable, lambda: store.put("key", b"x"), lambda: store.put_if_absent("key", b"x")):
        with pytest.raises(StoreAccessError, match="Not a directory") as caught:
            call()
        assert caught.value.exit_code == 2
