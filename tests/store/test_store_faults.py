"""Answers that get lost and bodies that break off, between a client and a real S3 server."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore import exceptions as aws

from infra.local.s3_server import LocalS3
from pipeline.base.errors import DamageError, FailedError, StoreAccessError
from pipeline.base.store import BucketSettings, ObjectChangedError, open_store
from pipeline.base.store import s3 as s3_module
from pipeline.base.store.s3 import S3Store
from tests.support.proxy import FaultyProxy, Kind, is_complete, is_get, is_put

CONTENT = random.Random(3).randbytes(5_000)


@pytest.fixture
def store(s3_workspace: str) -> S3Store:
    """An empty store in a bucket of its own."""
    opened = open_store(s3_workspace)
    assert isinstance(opened, S3Store)
    return opened


def lose_answers(store: S3Store, num_lost: int, before: Callable[[], None] = lambda: None) -> list[int]:
    """Let the next *num_lost* PUTs reach the server and their answers get lost, as a broken connection would.

    boto3 then repeats the request itself. *before* runs ahead of the first one. Returns the statuses as they come.
    """
    seen: list[int] = []
    send = store._client._endpoint.http_session.send

    def lossy(request: Any) -> Any:
        if request.method != "PUT":
            return send(request)
        if not seen:
            before()
        answer = send(request)
        seen.append(answer.status_code)
        if len(seen) <= num_lost:
            raise aws.ConnectionClosedError(endpoint_url=request.url)
        return answer

    store._client._endpoint.http_session.send = lossy
    return seen


def test_a_won_put_whose_answer_was_lost_is_told_as_won(store: S3Store) -> None:
    seen = lose_answers(store, 1)
    assert store.put_if_absent("key", b"mine")
    assert seen == [200, 412]
    assert store.read("key") == b"mine"


@pytest.mark.parametrize("theirs", [b"theirs", b"mine"], ids=["other content", "same content"])
def test_a_lost_put_whose_answer_was_lost_is_told_as_lost(store: S3Store, theirs: bytes) -> None:
    other = open_store(store.uri)
    seen = lose_answers(store, 1, before=lambda: other.put("key", theirs))
    assert not store.put_if_absent("key", b"mine")
    assert seen == [412, 412]
    assert store.read("key") == theirs


def test_a_won_replacement_whose_answer_was_lost_is_told_as_won(store: S3Store) -> None:
    store.put("key", b"start")
    info = store.head("key")
    assert info is not None
    seen = lose_answers(store, 1)
    assert store.put_if_match("key", b"mine", info.etag)
    assert seen == [200, 412]


def test_a_put_that_lost_and_whose_winner_is_gone_again_is_lost(store: S3Store) -> None:
    store.put("key", b"theirs")
    send = store._client._endpoint.http_session.send

    def vanish(request: Any) -> Any:
        answer = send(request)
        if request.method == "PUT":
            open_store(store.uri).delete("key")
        return answer

    store._client._endpoint.http_session.send = vanish
    assert not store.put_if_absent("key", b"mine")


def answer_conflict(store: S3Store, num_times: int) -> list[str]:
    """Answer the next conditional PUTs with 409, as AWS does when two requests meet at one key."""
    seen: list[str] = []

    def conflict(params: dict[str, Any], **more: Any) -> None:
        seen.append(params["Key"])
        if len(seen) <= num_times:
            response = {"Error": {"Code": "ConditionalRequestConflict", "Message": ""}}
            raise aws.ClientError(response, "PutObject")  # type: ignore[arg-type]

    store._client.meta.events.register("provide-client-params.s3.PutObject", conflict)
    return seen


def test_a_conflict_is_tried_again_because_nobody_has_won(store: S3Store) -> None:
    seen = answer_conflict(store, 2)
    assert store.put_if_absent("key", b"mine")
    assert len(seen) == 3


def test_a_conflict_that_does_not_end_is_told(store: S3Store) -> None:
    answer_conflict(store, 100)
    with pytest.raises(FailedError, match="other writers"):
        store.put_if_absent("key", b"mine")


SLOW = {"low_speed_bytes": 20_000, "low_speed_seconds": 1.0}


@pytest.fixture
def proxy(s3_server: LocalS3) -> Iterator[FaultyProxy]:
    """Between the client and the server."""
    with FaultyProxy(s3_server.endpoint, seed=5) as running:
        yield running


@pytest.fixture
def far(s3_workspace: str, proxy: FaultyProxy) -> S3Store:
    """The store behind the proxy; answers may be slow for a second."""
    settings = BucketSettings.model_validate({"endpoint": proxy.endpoint, **SLOW})
    opened = open_store(s3_workspace, {s3_workspace.split("/")[2]: settings})
    assert isinstance(opened, S3Store)
    return opened


@pytest.mark.parametrize("kind", ["cut", "reset", "trickle", "stall", "200-error"])
def test_a_body_that_breaks_off_is_read_again(far: S3Store, proxy: FaultyProxy, kind: Kind) -> None:
    far.put("key", CONTENT)
    proxy.inject(kind, 2, is_get)
    assert far.read("key") == CONTENT
    proxy.inject(kind, 2, is_get)
    assert far.read_range("key", 1, 3000) == CONTENT[1:3001]
    assert proxy.pending == 0


@pytest.mark.parametrize("kind", ["cut", "reset", "trickle", "200-error"])
def test_a_body_that_keeps_breaking_off_is_a_failure(far: S3Store, proxy: FaultyProxy, kind: Kind) -> None:
    far.put("key", CONTENT)
    proxy.inject(kind, 100, is_get)
    with pytest.raises(FailedError, match="the answer broke off") as caught:
        far.read("key")
    assert caught.value.exit_code == 1
    assert not isinstance(caught.value, DamageError)


def test_bytes_that_are_not_those_of_their_checksum_are_read_again(far: S3Store, proxy: FaultyProxy) -> None:
    far.put("key", CONTENT)
    proxy.inject("flip", 1, is_get)
    assert far.read("key") == CONTENT
    proxy.inject("flip", 100, is_get)
    with pytest.raises(DamageError, match="checksum"):
        far.read("key")


def test_bytes_that_change_on_their_way_in_are_sent_again(far: S3Store, proxy: FaultyProxy) -> None:
    proxy.inject("flip-sent", 2, is_put)
    far.put("key", CONTENT)
    assert far.read("key") == CONTENT
    assert proxy.pending == 0
    proxy.inject("flip-sent", 100, is_put)
    with pytest.raises(DamageError, match="not those that were sent"):
        far.put("other", CONTENT)
    assert far.head("other") is None


@pytest.mark.parametrize("kind", ["lose", "200-error"])
def test_a_put_with_another_answer_is_done_once(far: S3Store, proxy: FaultyProxy, kind: Kind) -> None:
    proxy.inject(kind, 1, is_put)
    assert far.put_if_absent("key", CONTENT)
    proxy.inject(kind, 1, is_put)
    far.put("other", CONTENT)
    assert far.read("key") == far.read("other") == CONTENT
    assert proxy.pending == 0


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A file that travels in three parts."""
    monkeypatch.setattr(s3_module, "_WHOLE_BYTES", 6 << 20)
    monkeypatch.setattr(s3_module, "_PART_BYTES", 5 << 20)
    (tmp_path / "file").write_bytes(CONTENT * 2500)
    return tmp_path / "file"


@pytest.mark.parametrize("kind", ["lose", "200-error"])
def test_a_lost_answer_to_complete_is_read_back(far: S3Store, proxy: FaultyProxy, parts: Path, kind: Kind) -> None:
    proxy.inject(kind, 1, is_complete)
    far.put_file("key", parts)
    assert proxy.pending == 0
    assert far.read("key") == parts.read_bytes()
    assert far.sweep() == 0


def test_a_complete_that_is_done_and_never_answered_is_done(far: S3Store, proxy: FaultyProxy, parts: Path) -> None:
    proxy.inject("lose", 100, is_complete)
    far.put_file("key", parts)
    assert far.read("key") == parts.read_bytes()


def test_a_complete_that_never_happens_is_told_and_leaves_nothing(
    far: S3Store, proxy: FaultyProxy, parts: Path
) -> None:
    far.put("key", b"before")
    proxy.inject("200-error", 100, is_complete)
    with pytest.raises(FailedError):
        far.put_file("key", parts)
    assert far.read("key") == b"before"
    assert far.sweep() == 0


def test_a_part_that_fails_ends_the_put_and_leaves_nothing(far: S3Store, proxy: FaultyProxy, parts: Path) -> None:
    proxy.inject("403", 100, lambda asked: "partNumber=2" in asked.target)
    with pytest.raises(StoreAccessError, match="access denied"):
        far.put_file("key", parts)
    assert far.head("key") is None
    assert far.sweep() == 0


def test_a_fetch_in_parts_never_mixes_two_states(far: S3Store, proxy: FaultyProxy, parts: Path, tmp_path: Path) -> None:
    far.put_file("key", parts)
    near = open_store(far.uri)
    other = b"short, so that it is there before the client loses patience and asks again"
    number = itertools.count()
    proxy.inject("call", 1, lambda asked: is_get(asked) and next(number) == 1, lambda: near.put("key", other))
    with pytest.raises(ObjectChangedError):
        far.fetch("key", tmp_path / "target" / "fetched")
    assert list((tmp_path / "target").iterdir()) == []
    far.fetch("key", tmp_path / "target" / "fetched")
    assert (tmp_path / "target" / "fetched").read_bytes() == other
