"""What cannot be reached is told in one line, with exit code 2, and without a word of the credentials."""

from __future__ import annotations

import errno
import itertools
import os
import socket
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from infra.local.s3_server import LocalS3
from pipeline.base.errors import DamageError, FailedError, StoreAccessError, VitpipeError
from pipeline.base.store import BucketSettings, Store, open_store
from pipeline.base.store import local as local_module
from tests.support.s3 import isolate_from_aws

CANARY_KEY = "AKIACANARYCANARY0000"
CANARY_SECRET = "canary/secret+that/must/never/be/shown00"


@pytest.fixture(autouse=True)
def _isolated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    isolate_from_aws(monkeypatch, tmp_path)


@pytest.fixture
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """The canary, as the credentials of the environment."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", CANARY_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", CANARY_SECRET)


def calls_of(store: Store, folder: Path) -> dict[str, Callable[[], Any]]:
    """Every call of a store that reaches for its content."""
    (folder / "file").write_bytes(b"x")
    return {
        "list": lambda: list(store.list()),
        "head": lambda: store.head("key"),
        "read": lambda: store.read("key"),
        "read_range": lambda: store.read_range("key", 0, 1),
        "put": lambda: store.put("key", b"x"),
        "put_file": lambda: store.put_file("key", folder / "file"),
        "put_if_absent": lambda: store.put_if_absent("key", b"x"),
        "put_if_match": lambda: store.put_if_match("key", b"x", "etag"),
        "fetch": lambda: store.fetch("key", folder / "fetched"),
        "delete": lambda: store.delete("key"),
        "check_writable": store.check_writable,
    }


def told(call: Callable[[], Any], *, secrets: tuple[str, ...] = (CANARY_KEY, CANARY_SECRET)) -> VitpipeError:
    """The error of *call*: a StoreAccessError of one line, without the secrets wherever it can be printed."""
    with pytest.raises(StoreAccessError) as caught:
        call()
    error = caught.value
    assert error.exit_code == 2
    shown = [str(error), repr(error), "".join(traceback.format_exception(error))]
    assert "\n" not in shown[0]
    for text, secret in itertools.product(shown, secrets):
        assert secret not in text
    return error


def test_wrong_key(s3_server: LocalS3, credentials: None, tmp_path: Path) -> None:
    store = open_store("s3://test-bucket/prefix", {"test-bucket": BucketSettings(endpoint=s3_server.endpoint)})
    for name, call in calls_of(store, tmp_path).items():
        assert "access denied" in str(told(call)), name


def test_wrong_secret(s3_server: LocalS3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3_server.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", CANARY_SECRET)
    store = open_store("s3://test-bucket/prefix", {"test-bucket": BucketSettings(endpoint=s3_server.endpoint)})
    for name, call in calls_of(store, tmp_path).items():
        assert "access denied" in str(told(call, secrets=(s3_server.access_key, CANARY_SECRET))), name


def test_anonymous_is_refused_by_a_private_bucket(s3_workspace: str, tmp_path: Path) -> None:
    bucket = s3_workspace.split("/")[2]
    store = open_store(s3_workspace, {bucket: BucketSettings(anonymous=True)})
    for name, call in calls_of(store, tmp_path).items():
        assert "access denied" in str(told(call)), name


def test_no_such_bucket(s3_workspace: str, tmp_path: Path) -> None:
    store = open_store("s3://no-such-bucket-here/prefix")
    for name, call in calls_of(store, tmp_path).items():
        assert "no bucket 'no-such-bucket-here'" in str(told(call)), name


def test_a_missing_key_in_a_bucket_that_is_there_stays_a_missing_key(s3_workspace: str) -> None:
    assert open_store(s3_workspace).head("key") is None


@pytest.fixture
def dead_endpoint() -> Iterator[str]:
    """An address of loopback on which nobody listens; the port stays taken, so that nobody will."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://user:{CANARY_SECRET.replace('/', '_')}@127.0.0.1:{taken.getsockname()[1]}"


def test_dead_endpoint(dead_endpoint: str, credentials: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # boto3 waits between its attempts
    monkeypatch.setenv("AWS_ENDPOINT_URL", dead_endpoint)
    store = open_store("s3://test-bucket/prefix")
    for name, call in calls_of(store, tmp_path).items():
        message = str(told(call, secrets=(CANARY_KEY, CANARY_SECRET, CANARY_SECRET.replace("/", "_"))))
        assert "no answer from endpoint http://127.0.0.1:" in message, name


@pytest.mark.parametrize("endpoint", ["not an address", "http://", "127.0.0.1:1"])
def test_an_endpoint_that_is_no_address(endpoint: str, credentials: None) -> None:
    store = open_store("s3://test-bucket/prefix", {"test-bucket": BucketSettings(endpoint=endpoint)})
    told(store.check_writable)


def test_no_credentials(s3_server: LocalS3, tmp_path: Path) -> None:
    store = open_store("s3://test-bucket/prefix", {"test-bucket": BucketSettings(endpoint=s3_server.endpoint)})
    for name, call in calls_of(store, tmp_path).items():
        assert "no credentials found - set AWS_ACCESS_KEY_ID" in str(told(call)), name


def test_half_of_the_credentials(s3_server: LocalS3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", CANARY_KEY)
    store = open_store("s3://test-bucket/prefix", {"test-bucket": BucketSettings(endpoint=s3_server.endpoint)})
    assert "no credentials found" in str(told(store.check_writable))


def test_no_such_profile(credentials: None) -> None:
    store = open_store("s3://test-bucket/prefix", {"test-bucket": BucketSettings(profile="nobody")})
    assert "no such profile" in str(told(store.check_writable))


def test_what_breaks_during_a_transfer_is_told_too(s3_workspace: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    store = open_store(s3_workspace)
    store.put("key", b"content")
    error = told(lambda: store.fetch("key", tmp_path / "file" / "below"))
    assert "check the path" in str(error)


def test_a_full_disk_fails_during_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(local_module, "_write_synced", full)
    with pytest.raises(FailedError, match="No space left on device - make room") as caught:
        open_store(str(tmp_path)).put("key", b"x")
    assert caught.value.exit_code == 1
    assert not isinstance(caught.value, DamageError)


def test_a_folder_that_cannot_be_read_is_an_error_not_an_empty_listing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(str(tmp_path))
    store.put("folder/key", b"x")
    scan = os.scandir

    def denied(path: Path) -> Any:
        if path.name == "folder":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return scan(path)

    monkeypatch.setattr(os, "scandir", denied)
    assert "Permission denied" in str(told(lambda: list(store.list())))
