"""Answers that get lost and bodies that break off, between a client and a real S3 server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from botocore import exceptions as aws

from pipeline.base.errors import DamageError, FailedError
from pipeline.base.store import open_store
from pipeline.base.store.s3 import S3Store


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


class BreakingBody:
    """A body that ends with an error, for a number of times; then the real one."""

    def __init__(self, errors: Iterator[Exception], real: Any) -> None:
        self._errors, self._real = errors, real

    def read(self) -> bytes:
        """The error of this time, or the content."""
        error = next(self._errors, None)
        if error is not None:
            raise error
        content: bytes = self._real.read()
        return content


def break_bodies(store: S3Store, errors: list[Exception]) -> None:
    """Let the next reads of a body end with *errors*, one each."""
    pending = iter(errors)
    get = store._client.get_object

    def breaking(**arguments: Any) -> Any:
        answer = get(**arguments)
        return answer | {"Body": BreakingBody(pending, answer["Body"])}

    store._client.get_object = breaking


def broken_bodies() -> list[Exception]:
    """What botocore raises while a body is read."""
    return [
        aws.ResponseStreamingError(error="connection reset"),
        aws.IncompleteReadError(actual_bytes=1, expected_bytes=7),
        aws.ReadTimeoutError(endpoint_url="http://127.0.0.1"),
    ]


def test_a_body_that_breaks_off_is_read_again(store: S3Store) -> None:
    store.put("key", b"content")
    break_bodies(store, broken_bodies())
    assert store.read("key") == b"content"
    break_bodies(store, broken_bodies())
    assert store.read_range("key", 1, 3) == b"ont"


@pytest.mark.parametrize("error", broken_bodies(), ids=lambda error: type(error).__name__)
def test_a_body_that_keeps_breaking_off_is_a_failure(store: S3Store, error: Exception) -> None:
    store.put("key", b"content")
    break_bodies(store, [error] * 10)
    with pytest.raises(FailedError, match="the answer broke off") as caught:
        store.read("key")
    assert caught.value.exit_code == 1


def test_bytes_that_are_not_those_of_their_checksum_are_damage(store: S3Store) -> None:
    store.put("key", b"content")
    break_bodies(store, [aws.FlexibleChecksumError(error_msg="Expected checksum a did not match")] * 10)
    with pytest.raises(DamageError, match="checksum"):
        store.read("key")
