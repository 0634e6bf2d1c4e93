"""``vitpipe stage`` and ``shard --dry-run`` as a person gives them: what is told, exit codes, being stopped."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.local.s3_server import LocalS3
from tests.support.command import start, vitpipe
from tests.support.proxy import FaultyProxy, is_get
from tests.support.staging import assert_nothing_left, content_of, digests_of, make_corpus, put_corpus

CORPUS = make_corpus(11, 12)


@pytest.fixture
def source(s3_workspace: str) -> str:
    """The corpus in a bucket."""
    return put_corpus(f"{s3_workspace}/photos", CORPUS)


@pytest.fixture
def proxy(s3_server: LocalS3) -> Iterator[FaultyProxy]:
    """In front of the server."""
    with FaultyProxy(s3_server.endpoint, 0) as running:
        yield running


def test_a_prefix_goes_to_a_workspace_under_its_own_name(source: str, tmp_path: Path) -> None:
    dry = vitpipe("stage", source, tmp_path / "ws", "--dry-run", "--json")
    assert dry.returncode == 0, dry.stderr
    assert json.loads(dry.stdout)["num_objects"] == len(CORPUS)
    assert not (tmp_path / "ws").exists()
    done = vitpipe("stage", source, tmp_path / "ws", "--exclude", "class 1/*", "--json")
    assert done.returncode == 0, done.stderr
    told, copy = json.loads(done.stdout), tmp_path / "ws" / "corpora" / "photos"
    kept = {key: data for key, data in CORPUS.items() if not key.startswith("class 1/")}
    assert (told["outcome"], told["num_objects"]) == ("copied", len(kept))
    assert content_of(copy) == digests_of(kept)
    assert f"{len(kept)} objects" in done.stderr
    assert "requests" in done.stderr, "what it will take is told before it begins"
    again = vitpipe("stage", source, tmp_path / "ws", "--exclude", "class 1/*")
    assert again.returncode == 0
    assert "nothing to do" in again.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["s3://no-such-bucket-1/x", "WS"], "no bucket"),
        (["SOURCE"], "where to?"),
        (["SOURCE", "WS", "parallel=no"], "parallel"),
        (["SOURCE", "WS", "--check", "eyes"], "sizes and digests"),
        (["SOURCE", "WS", "--include", "*.png"], "include and exclude leave nothing"),
    ],
)
def test_wrong_input_is_one_line_and_leaves_nothing(
    source: str, tmp_path: Path, arguments: list[str], said: str
) -> None:
    given = [{"SOURCE": source, "WS": str(tmp_path / "ws")}.get(one, one) for one in arguments]
    done = vitpipe("stage", *given)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "ws").exists()


def test_stopped_by_sigterm_it_says_so_and_the_same_command_goes_on(
    source: str, proxy: FaultyProxy, tmp_path: Path
) -> None:
    asked, stopped = threading.Event(), threading.Event()

    def hold() -> None:
        asked.set()
        stopped.wait(60)

    proxy.inject("call", 1, lambda request: is_get(request) and request.key.endswith("005.jpg"), hold)
    command = ("stage", source, tmp_path / "ws", "--source-endpoint", proxy.endpoint)
    process = start(*command)
    try:
        assert asked.wait(60)
        process.terminate()
        stopped.set()
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 3, said
    assert "stopped by SIGTERM" in said
    copy = tmp_path / "ws" / "corpora" / "photos"
    assert not (copy / "manifest.json").exists()
    done = vitpipe(*command)
    assert done.returncode == 0, done.stderr
    assert content_of(copy) == digests_of(CORPUS)
    assert_nothing_left(copy)


def test_a_dry_run_of_sharding_writes_nothing(source: str, tmp_path: Path) -> None:
    (tmp_path / "ws").mkdir()
    done = vitpipe("shard", source, "-w", tmp_path / "ws", "--name", "photos", "--dry-run", "--json", "kind=folder")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["estimates"]["photos"]
    assert list((tmp_path / "ws").iterdir()) == []
