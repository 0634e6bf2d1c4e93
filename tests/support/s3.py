"""A real S3 server for tests: one server a session, one fresh bucket a test."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

from infra.local.s3_server import LocalS3


def isolate_from_aws(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Forget every AWS setting of the machine: variables, shared files, instance metadata."""
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(folder / "no-aws-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(folder / "no-aws-credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalS3]:
    """The server, started once for the session."""
    with LocalS3(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def s3_workspace(s3_server: LocalS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """``s3://bucket/prefix`` in a bucket of its own; the environment reaches it with the right key."""
    isolate_from_aws(monkeypatch, tmp_path)
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    bucket = f"test-{uuid.uuid4().hex[:12]}"
    session = boto3.session.Session()  # not the default one, which remembers the keys of an earlier server
    session.client("s3").create_bucket(Bucket=bucket)
    return f"s3://{bucket}/prefix"
