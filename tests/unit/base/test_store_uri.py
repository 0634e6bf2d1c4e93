"""URIs: two schemes and plain paths; anything that could mean something else is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.base.config import build
from pipeline.base.errors import InputError, RecipeError
from pipeline.base.store import BucketSettings, normalise_uri, open_store, split_uri
from pipeline.base.store.local import LocalStore
from pipeline.base.store.s3 import S3Store


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("s3://bucket", "s3://bucket"),
        ("s3://bucket/", "s3://bucket"),
        ("s3://bucket/a/b/", "s3://bucket/a/b"),
        ("s3://bucket/a#b c%20d", "s3://bucket/a#b c%20d"),
        ("file:///tmp/x", "file:///tmp/x"),
        ("file:///tmp/a%20b", "file:///tmp/a%20b"),
        ("file:///tmp/a#b", "file:///tmp/a%23b"),
        ("/tmp/a b#c%20?", "file:///tmp/a%20b%23c%2520%3F"),
        ("/tmp/a/", "file:///tmp/a"),
    ],
)
def test_uris_have_one_form(text: str, expected: str) -> None:
    assert normalise_uri(text) == expected
    assert normalise_uri(expected) == expected


def test_plain_paths_are_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert normalise_uri("x/y") == (tmp_path / "x/y").as_uri()
    assert normalise_uri(".") == tmp_path.as_uri()
    assert normalise_uri("~/x") == (tmp_path / "home/x").as_uri()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\0",
        "file://",
        "file://tmp/x",
        "file:/tmp/x",
        "s3:/bucket/x",
        "s3://",
        "s3:///x",
        "s3://Bucket/x",
        "s3://b/x",
        "s3://key:secret@bucket/x",
        "s3://bucket:9000/x",
        "s3://bucket/x?versionId=1",
        "s3://bucket/a/../b",
        "gs://bucket/x",
        "https://user:secret@host/x",
        "https:host",
        "pipe:cat /etc/passwd",
        "pipe:aws s3 cp s3://bucket/x -",
        "exec:x",
        "~nobody-of-that-name/x",
    ],
)
def test_other_uris_are_refused(text: str) -> None:
    with pytest.raises(InputError) as caught:
        normalise_uri(text)
    assert caught.value.exit_code == 2
    assert "secret" not in str(caught.value)
    assert "passwd" not in str(caught.value)


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("file:///a/b%20c", ("file:///a", "b c")),
        ("file:///a", ("file:///", "a")),
        ("s3://bucket/a", ("s3://bucket", "a")),
        ("s3://bucket/a/b%20c", ("s3://bucket/a", "b%20c")),
    ],
)
def test_a_uri_is_split_into_parent_and_name(uri: str, expected: tuple[str, str]) -> None:
    assert split_uri(uri) == expected


@pytest.mark.parametrize("uri", ["s3://bucket", "file:///"])
def test_what_has_no_parent_is_refused(uri: str) -> None:
    with pytest.raises(InputError):
        split_uri(uri)


def test_the_store_of_a_uri(tmp_path: Path) -> None:
    local = open_store(str(tmp_path / "a b#c"))
    assert isinstance(local, LocalStore)
    assert local.root == tmp_path / "a b#c"
    assert not local.root.exists()
    assert open_store(local.uri).uri == local.uri
    bucket = open_store("s3://bucket/a/b")
    assert isinstance(bucket, S3Store)
    assert (bucket.bucket, bucket.prefix) == ("bucket", "a/b")


def test_settings_hold_no_credentials() -> None:
    with pytest.raises(RecipeError, match="unknown key 'secret_key'"):
        build(BucketSettings, {"secret_key": "x"})
