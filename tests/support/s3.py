"""A real S3 server for tests: one server and one bucket a session, one fresh prefix a test."""

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


def reach(server: LocalS3, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Let the environment name *server* and its key, and nothing else of AWS."""
    isolate_from_aws(monkeypatch, folder)
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalS3]:
    """The server, started once for the session."""
    with LocalS3(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture(scope="session")
def s3_bucket(s3_server: LocalS3, tmp_path_factory: pytest.TempPathFactory) -> str:
    """One bucket for all: the first write to a new one takes as long as a small test."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        reach(s3_server, monkeypatch, tmp_path_factory.mktemp("no-aws"))
        session = boto3.session.Session()  # not the default one, which remembers the keys of an earlier server
        session.client("s3").create_bucket(Bucket="tests")
    return "tests"


@pytest.fixture
def s3_workspace(s3_server: LocalS3, s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """``s3://bucket/prefix`` that nothing was written to; the environment reaches it with the right key."""
    reach(s3_server, monkeypatch, tmp_path)
    return f"s3://{s3_bucket}/{uuid.uuid4().hex[:12]}"
