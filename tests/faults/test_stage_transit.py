"""Staging while the network and the stores misbehave: what arrives is what was there, or is named."""

from __future__ import annotations

import itertools
import logging
import random
import traceback
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infra.local.s3_server import LocalS3
from pipeline.base.errors import ConflictError, FailedError, StoreAccessError, TooManyRejectsError
from pipeline.base.progress import Silent
from pipeline.base.store import open_store
from pipeline.base.store import s3 as s3_module
from pipeline.corpus.staging import stage as build_module
from pipeline.corpus.staging.manifest import read_staged
from pipeline.corpus.staging.verify import verify_staged
from tests.support.proxy import FaultyProxy, Kind, Where, is_complete, is_get, is_put
from tests.support.staging import (
    BIG,
    QUICK,
    assert_nothing_left,
    content_of,
    digests_of,
    make_corpus,
    manifest_bytes,
    new_bucket,
    put_corpus,
    rejects_of,
    stage_quietly,
    through,
)

SEED = random.SystemRandom().randrange(10**6)
CORPUS = make_corpus(7)
SMALL = "class 1/é+010.jpg"
# Where a second client acts while an answer is waited for: a request given up and repeated would come before its act.
WAITING = QUICK.model_copy(update={"low_speed_seconds": 30.0})


@pytest.fixture
def source(s3_workspace: str) -> str:
    """The corpus in a bucket."""
    return put_corpus(s3_workspace, CORPUS)


@pytest.fixture
def proxy(s3_server: LocalS3) -> Iterator[FaultyProxy]:
    """In front of the server; its seed is printed when the test fails."""
    print(f"seed {SEED}")
    with FaultyProxy(s3_server.endpoint, SEED) as running:
        yield running


@pytest.fixture(autouse=True)
def _no_secret_is_told(s3_server: LocalS3, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> Iterator[None]:
    """O7: neither half of the credentials stands in a log of ours or in what was written."""
    caplog.set_level(logging.INFO)
    yield
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*.json"))
    for secret in (s3_server.secret_key, s3_server.access_key):
        assert secret not in caplog.text
        assert secret.encode() not in written


def is_of(key: str, kind: str = "GET") -> Where:
    """Requests of one method about one key."""
    quoted = key.replace(" ", "%20").replace("é", "%C3%A9").replace("+", "%2B")
    return lambda asked: asked.method == kind and asked.key.endswith(quoted)


def told(error: BaseException, server: LocalS3) -> str:
    """The error as anybody could see it, which has no secret in it."""
    text = "".join(traceback.format_exception(error))
    assert server.secret_key not in text
    assert server.access_key not in text
    return str(error)


GET_FAULTS: dict[Kind, int] = {
    "503": 12,
    "cut": 8,
    "reset": 8,
    "trickle": 4,
    "stall": 4,
    "flip": 1,
    "lose": 6,
    "200-error": 6,
    "403": 6,
}


@pytest.mark.parametrize("kind", GET_FAULTS)
def test_what_arrives_is_what_was_there(source: str, proxy: FaultyProxy, tmp_path: Path, kind: Kind) -> None:
    calm = stage_quietly(source, tmp_path / "calm")
    draw = random.Random(SEED)
    if kind == "flip":  # a bit of a small one and a bit of a part
        proxy.inject(kind, 1, is_of(BIG))
        proxy.inject(kind, 1, is_of(SMALL))
    else:
        proxy.inject(kind, GET_FAULTS[kind], lambda asked: is_get(asked) and draw.random() < 0.5)
    done = stage_quietly(source, tmp_path / "copy", source_stores=through(source, proxy.endpoint))
    assert content_of(tmp_path / "copy") == digests_of(CORPUS)
    assert manifest_bytes(tmp_path / "copy") == manifest_bytes(tmp_path / "calm")
    assert done.stage.manifest == calm.stage.manifest
    assert done.stage.manifest.proofs == {"crc32": len(CORPUS) - 1, "md5-parts": 1}
    assert proxy.pending < GET_FAULTS[kind]
    assert kind != "flip" or proxy.pending == 0
    assert_nothing_left(tmp_path / "copy")


PUT_FAULTS: list[tuple[Kind, Where, int]] = [
    ("503", is_put, 6),
    ("flip-sent", is_put, 3),
    ("lose", is_put, 4),
    ("200-error", is_put, 4),
    ("403", is_put, 4),
    ("lose", is_complete, 1),
    ("200-error", is_complete, 1),
    ("503", is_complete, 2),
]


@pytest.mark.parametrize(("kind", "where", "times"), PUT_FAULTS, ids=lambda value: getattr(value, "__name__", value))
def test_what_is_put_is_what_was_sent(source: str, proxy: FaultyProxy, kind: Kind, where: Where, times: int) -> None:
    target = f"{new_bucket(f'target-{uuid.uuid4().hex[:8]}')}/corpora/a"
    proxy.inject(kind, times, lambda asked: where(asked) and "/data/" in asked.target)
    stage_quietly(source, target, target_stores=through(target, proxy.endpoint))
    assert proxy.pending == 0
    assert content_of(target) == digests_of(CORPUS)
    assert_nothing_left(target)


def test_the_same_wrong_bit_twice_is_rejected_by_name(source: str, proxy: FaultyProxy, tmp_path: Path) -> None:
    for key in (SMALL, BIG):
        proxy.inject("flip", 1000, is_of(key))
    stores = through(source, proxy.endpoint)
    with pytest.raises(TooManyRejectsError, match="2 objects cannot be copied") as caught:
        stage_quietly(source, tmp_path / "copy", source_stores=stores)
    assert caught.value.exit_code == 1
    assert rejects_of(tmp_path / "copy") == {SMALL: "digest-mismatch", BIG: "digest-mismatch"}
    assert not (tmp_path / "copy" / "manifest.json").exists()
    tolerant = QUICK.model_copy(update={"tolerated_rejects": 2})
    done = stage_quietly(source, tmp_path / "copy", source_stores=stores, recipe=tolerant)
    assert done.stage.manifest.num_rejected == 2
    rest = {key: data for key, data in CORPUS.items() if key not in (SMALL, BIG)}
    assert content_of(tmp_path / "copy") == digests_of(rest)
    assert_nothing_left(tmp_path / "copy")


def test_denied_for_good_is_told_and_the_same_command_goes_on(
    source: str, proxy: FaultyProxy, tmp_path: Path, s3_server: LocalS3
) -> None:
    number = itertools.count()
    proxy.inject("403", 10_000, lambda asked: is_get(asked) and next(number) >= 12)
    stores = through(source, proxy.endpoint)
    hasty = QUICK.model_copy(update={"patience_seconds": 0.5})
    with pytest.raises(StoreAccessError, match="access denied") as caught:
        stage_quietly(source, tmp_path / "copy", source_stores=stores, recipe=hasty)
    assert "s3://" in told(caught.value, s3_server)
    before = proxy.count(is_get)
    stage_quietly(source, tmp_path / "copy", source_stores=through(source, s3_server.endpoint))
    assert content_of(tmp_path / "copy") == digests_of(CORPUS)
    assert_nothing_left(tmp_path / "copy")
    assert proxy.count(is_get) == before


def test_what_was_copied_is_not_read_again(source: str, proxy: FaultyProxy, tmp_path: Path) -> None:
    number = itertools.count()
    proxy.inject("403", 10_000, lambda asked: is_get(asked) and next(number) >= 12)
    hasty = QUICK.model_copy(update={"patience_seconds": 0.0, "parallel": 1})
    with pytest.raises(StoreAccessError):
        stage_quietly(source, tmp_path / "copy", source_stores=through(source, proxy.endpoint), recipe=hasty)
    with FaultyProxy(f"http://{proxy._upstream[0]}:{proxy._upstream[1]}", SEED) as second:
        stage_quietly(source, tmp_path / "copy", source_stores=through(source, second.endpoint))
        assert second.count(is_get) == len(CORPUS) - 12 + 2  # the big one takes three
    assert content_of(tmp_path / "copy") == digests_of(CORPUS)


def test_new_credentials_are_found(
    source: str, s3_server: LocalS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_module, "_RENEW_SECONDS", 0.0)
    file = tmp_path / "credentials"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    text = "[default]\naws_access_key_id = {}\naws_secret_access_key = {}\n"
    file.write_text(text.format(s3_server.access_key, "expired"))
    store = open_store(source)
    with pytest.raises(StoreAccessError, match="SignatureDoesNotMatch") as caught:
        store.read(SMALL)
    told(caught.value, s3_server)
    file.write_text(text.format(s3_server.access_key, s3_server.secret_key))
    assert store.read(SMALL) == CORPUS[SMALL]


@pytest.mark.parametrize("compare_sums", [True, False])
@pytest.mark.parametrize("key", [SMALL, BIG])
def test_an_object_replaced_meanwhile_is_taken_whole(
    source: str, proxy: FaultyProxy, tmp_path: Path, key: str, compare_sums: bool
) -> None:
    """For the big one that is between two of its ranges. The pinned ETag is enough, sums come on top."""
    new = {key: bytes(reversed(CORPUS[key]))}
    number = itertools.count()
    asks = is_of(key)
    proxy.inject(
        "call", 1, lambda asked: asks(asked) and (key != BIG or next(number) == 1), lambda: put_corpus(source, new)
    )
    recipe = WAITING.model_copy(update={"compare_sums": compare_sums})
    stage_quietly(source, tmp_path / "copy", source_stores=through(source, proxy.endpoint), recipe=recipe)
    assert proxy.pending == 0
    assert content_of(tmp_path / "copy") == digests_of(CORPUS | new)
    etags = {info.key: info.etag for info in open_store(source).list()}
    assert {row.key: row.etag for row in read_staged(open_store(str(tmp_path / "copy")))} == etags


def test_an_object_that_never_stays_is_rejected_by_name(source: str, proxy: FaultyProxy, tmp_path: Path) -> None:
    contents = (random.Random(number).randbytes(1000) for number in itertools.count())
    proxy.inject("call", 1000, is_of(SMALL), lambda: put_corpus(source, {SMALL: next(contents)}))
    proxy.inject("call", 1, is_of(BIG), lambda: open_store(source).delete(BIG))
    with pytest.raises(TooManyRejectsError):
        stage_quietly(source, tmp_path / "copy", source_stores=through(source, proxy.endpoint), recipe=WAITING)
    assert rejects_of(tmp_path / "copy") == {SMALL: "changed-while-read", BIG: "vanished"}


def test_a_stager_that_is_first_with_other_content_wins(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = build_module._copy

    def overtaken(*arguments: Any) -> Any:
        mine = copy(*arguments)
        monkeypatch.setattr(build_module, "_copy", copy)
        put_corpus(source, {SMALL: b"new"})
        stage_quietly(source, tmp_path / "copy")
        return mine

    monkeypatch.setattr(build_module, "_copy", overtaken)
    with pytest.raises(ConflictError, match="another stager was first"):
        stage_quietly(source, tmp_path / "copy")
    assert content_of(tmp_path / "copy") == digests_of(CORPUS | {SMALL: b"new"})
    assert verify_staged(open_store(str(tmp_path / "copy")), "digests", Silent()) == []


@pytest.mark.parametrize(("server_sees_it", "reason"), [(False, "digest-mismatch"), (True, "unreadable")])
def test_a_bit_flipped_at_rest_behind_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server_sees_it: bool, reason: str
) -> None:
    """The server keeps a sum of its own beside the bytes. Where that fits, it delivers them; else it has an error."""
    with LocalS3(tmp_path / "server") as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        source = put_corpus(f"{new_bucket('resting')}/a", CORPUS)
        _flip_on_disk(tmp_path / "server" / "data", CORPUS[SMALL], mend_sum=not server_sees_it)
        impatient = QUICK.model_copy(update={"patience_seconds": 0.5, "tolerated_rejects": 1})
        done = stage_quietly(source, tmp_path / "copy", recipe=impatient)
    assert done.stage.manifest.num_rejected == 1
    assert rejects_of(tmp_path / "copy") == {SMALL: reason}
    assert content_of(tmp_path / "copy") == digests_of({key: CORPUS[key] for key in CORPUS if key != SMALL})


def _flip_on_disk(folder: Path, content: bytes, *, mend_sum: bool) -> None:
    """A bit of *content*; with *mend_sum* also the CRC-32C behind it, as if the bytes had come to the server so."""
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 4
    changes = [(content, bytes(flipped))]
    if mend_sum:
        changes.append((_crc32c(content), _crc32c(bytes(flipped))))
    for path in folder.rglob("*.dat"):
        start = path.read_bytes().find(content)
        if start < 0:
            continue
        for before, after in changes:
            place = path.read_bytes().index(before, start)
            with path.open("r+b") as file:
                file.seek(place)
                file.write(after)
        return
    raise AssertionError("the content is not on the disk")


def _crc32c(data: bytes) -> bytes:
    """CRC-32 with the polynomial of Castagnoli (RFC 3720, appendix B.4), bit by bit, big-endian."""
    register = 0xFFFFFFFF
    for byte in data:
        register ^= byte
        for _ in range(8):
            register = register >> 1 ^ (0x82F63B78 if register & 1 else 0)
    return (register ^ 0xFFFFFFFF).to_bytes(4, "big")


def test_a_store_that_delivers_nothing_ends_the_stage(source: str, proxy: FaultyProxy, tmp_path: Path) -> None:
    many = {f"{number:03d}": b"x" for number in range(60)}
    put_corpus(f"{source}/many", many)
    proxy.inject("200-error", 100_000, is_get)
    hopeless = QUICK.model_copy(update={"patience_seconds": 0.0, "parallel": 16})
    with pytest.raises(FailedError, match="in a row could not be read"):
        stage_quietly(
            f"{source}/many", tmp_path / "copy", source_stores=through(source, proxy.endpoint), recipe=hopeless
        )
    assert not (tmp_path / "copy" / "manifest.json").exists()


@pytest.mark.parametrize("direction", ["into a folder", "into a bucket"])
def test_names_that_the_target_cannot_hold_are_rejected_by_name(
    s3_workspace: str, tmp_path: Path, direction: str
) -> None:
    if direction == "into a folder":
        source, key = s3_workspace, "/".join(["k" * 180] * 5)
        target = str(tmp_path.joinpath(*["d" * 200] * 16))
    else:
        source, key = str(tmp_path / "source"), "/".join(["k" * 180] * 6)
        target = s3_workspace
    put_corpus(source, {"fine": b"x", key: b"y"})
    tolerant = QUICK.model_copy(update={"tolerated_rejects": 1})
    stage_quietly(source, target, recipe=tolerant)
    assert rejects_of(target) == {key: "name-not-storable"}
    assert_nothing_left(target)
