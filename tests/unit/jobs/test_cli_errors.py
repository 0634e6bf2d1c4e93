"""What the command says to bad input: one clear line, no traceback, the right exit code, and Ray is never started."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import jobs.base.ray_session
from jobs.cli import main
from pipeline.base.store import open_store
from tests.support.datasets import make_dataset
from tests.support.ranks import free_port
from tests.support.stored_models import put_network, tiny

ROOT = Path(__file__).parents[3]
SMALL = ROOT / "tests" / "support" / "small.yaml"


@dataclass(frozen=True)
class Said:
    """What a command said, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        """The lines that told the error."""
        return [line for line in self.err.splitlines() if line.startswith("vitpipe: ")]


Vitpipe = Callable[..., Said]


@pytest.fixture
def vitpipe(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Iterator[Vitpipe]:
    """Calls ``main`` with arguments, in an empty folder, where starting Ray is a failure."""

    def refuse(_debug: bool) -> None:
        raise AssertionError("ray was started")

    monkeypatch.setattr(jobs.base.ray_session, "_prepare", refuse)
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["vitpipe", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        captured = capsys.readouterr()
        assert isinstance(caught.value.code, int)
        return Said(caught.value.code, captured.out, captured.err)

    before = signal.getsignal(signal.SIGTERM)
    yield call
    signal.signal(signal.SIGTERM, before)


def assert_refused(said: Said, *parts: str, lines: int = 1) -> None:
    """*said* is a refusal in *lines* lines which hold *parts*, and nothing else was printed."""
    assert said.code == 2, said
    assert len(said.lines) == lines, said.err
    assert said.err.splitlines() == said.lines, "something else was printed"
    assert "Traceback" not in said.err
    assert said.out == ""
    for part in parts:
        assert part in said.err


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder in which there is no image."""
    folder = tmp_path / "photos"
    folder.mkdir()
    return folder


OVERRIDES = [
    ("pretrain.stepz=3", "unknown key 'pretrain.stepz' - did you mean 'steps'?"),
    ("evaluat={}", "unknown key 'evaluat' - did you mean 'evaluate'?"),
    ("shard.0.max_sample=3", "did you mean 'max_samples'?"),
    ("pretrain.steps=soon", "'pretrain.steps': Input should be a valid integer"),
    ("pretrain.steps=-5", "'pretrain.steps': Input should be greater than 0 (got -5)"),
    ("pretrain.optimizer.learning_rate=.nan", "'pretrain.optimizer.learning_rate': Input should be a finite number"),
    ("pretrain.optimizer.learning_rate=.inf", "'pretrain.optimizer.learning_rate': Input should be a finite number"),
    ("pretrain.model.dropout=1.5", "'pretrain.model.dropout'"),
    ("pretrain.workers=0", "'pretrain.workers'"),
    ("pretrain.stream.partitions=3", "partitions 3 does not divide batch_size 64"),
    ("pretrain.schedule.warmup_steps=1000", "warmup_steps 1000 is more than steps 300"),
    ("evaluate.tasks.digits.test=digits-train", "train and test are the same dataset"),
    ("evaluate.max_parallel=none", "'evaluate.max_parallel'"),
    ("no-equals-sign", "'no-equals-sign' is not of the form key.sub=value"),
    ("shard.9.name=x", "nothing at '9'"),
    ("pretrain=[", "the value is not valid YAML"),
]


@pytest.mark.parametrize(("override", "part"), OVERRIDES)
def test_a_bad_override_is_told_in_one_line(vitpipe: Vitpipe, tmp_path: Path, override: str, part: str) -> None:
    assert_refused(vitpipe("run", SMALL, override, "-w", tmp_path / "ws"), part)
    assert not (tmp_path / "ws").exists()


@pytest.mark.parametrize("command", ["run", "shard", "pretrain", "evaluate"])
def test_every_stage_checks_the_whole_recipe(vitpipe: Vitpipe, tmp_path: Path, command: str) -> None:
    assert_refused(vitpipe(command, SMALL, "pretrain.stepz=3", "-w", tmp_path), "did you mean 'steps'?")


def test_all_problems_are_told_at_once(vitpipe: Vitpipe, tmp_path: Path) -> None:
    said = vitpipe("run", SMALL, "pretrain.stepz=3", "pretrain.workers=-1", "shard.0.max_samples=.nan", "-w", tmp_path)
    assert_refused(said, "stepz", "pretrain.workers", "shard.0.max_samples", lines=3)
    assert all(str(SMALL) in line for line in said.lines)


@pytest.mark.parametrize("command", ["run", "pretrain"])
def test_a_missing_recipe(vitpipe: Vitpipe, command: str) -> None:
    assert_refused(vitpipe(command, "nowhere.yaml"), "nowhere.yaml: there is no such file", "tiny")


@pytest.mark.parametrize("command", ["shard", "evaluate", "report"])
def test_a_missing_recipe_where_there_could_be_something_else(vitpipe: Vitpipe, command: str) -> None:
    assert_refused(vitpipe(command, "nowhere.yaml", "-w", "ws"), "nowhere.yaml: there is no such file")


def test_a_recipe_that_is_no_text(vitpipe: Vitpipe, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_bytes(b"\xff\xfe\0\1")
    assert_refused(vitpipe("run", "r.yaml"), "r.yaml: cannot be read: not a UTF-8 text file")
    assert_refused(vitpipe("run", tmp_path), "cannot be read: Is a directory")


def test_a_missing_corpus(vitpipe: Vitpipe, tmp_path: Path) -> None:
    said = vitpipe("shard", tmp_path / "nowhere", "-w", tmp_path / "ws", "--name", "x")
    assert_refused(said, f"{tmp_path}/nowhere does not exist")
    assert_refused(vitpipe("run", SMALL, f"shard.0.source={tmp_path}/nowhere", "-w", tmp_path / "ws"), "does not exist")


def test_an_empty_folder(vitpipe: Vitpipe, photos: Path) -> None:
    assert_refused(vitpipe("shard", photos, "-w", "ws", "--name", "x"), f"no images in {photos} (it is empty)")


def test_a_folder_without_images(vitpipe: Vitpipe, photos: Path) -> None:
    (photos / "notes.txt").write_text("no image")
    assert_refused(vitpipe("shard", photos, "-w", "ws", "--name", "x"), f"no images in {photos} (only: txt)")


@pytest.mark.parametrize("source", ["embedded://imagenet/train", "embedded://digits/validation"])
def test_an_unknown_embedded_corpus_names_the_known(vitpipe: Vitpipe, source: str) -> None:
    assert_refused(vitpipe("shard", source, "-w", "ws", "--name", "x"), source, "embedded://digits/test")


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", SMALL),
        ("shard", SMALL),
        ("shard", "embedded://digits/train", "--name", "x"),
        ("demo", "--out"),
    ],
    ids=["run", "shard recipe", "shard source", "demo"],
)
def test_a_workspace_that_cannot_be_written(vitpipe: Vitpipe, tmp_path: Path, arguments: tuple[object, ...]) -> None:
    (tmp_path / "file").write_text("a regular file")
    where = tmp_path / "file" / "below"
    said = vitpipe(*arguments, *([where] if arguments[-1] == "--out" else ["--workspace", where]))
    assert_refused(said, "cannot be written", str(where))


@pytest.mark.parametrize(
    ("workspace", "part"),
    [("gs://bucket/x", "gs"), ("s3://user:secret@bucket/x", "credentials"), ("s3://B_A_D/x", "is not a bucket name")],
)
def test_a_workspace_of_another_kind(vitpipe: Vitpipe, workspace: str, part: str) -> None:
    said = vitpipe("run", SMALL, "-w", workspace)
    assert_refused(said, part)
    assert "secret" not in said.err


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("pretrain", SMALL), "no dataset 'digits-train'"),
        (("evaluate", SMALL), "no run 'small'"),
        (("evaluate", "nobody", "--train", "a", "--test", "b"), "no run 'nobody'"),
        (("report", "nobody"), "no run 'nobody'"),
        (("report", SMALL), "no run 'small'"),
        (("verify", "nothing"), "no dataset 'nothing'"),
        (("verify",), "no datasets"),
    ],
)
def test_an_unknown_dataset_or_run(vitpipe: Vitpipe, tmp_path: Path, arguments: tuple[object, ...], part: str) -> None:
    assert_refused(vitpipe(*arguments, "-w", tmp_path / "ws"), part)


def test_an_unknown_dataset_beside_known_ones(vitpipe: Vitpipe, tmp_path: Path) -> None:
    make_dataset(open_store(str(tmp_path / "ws")), "birds", num_samples=20, size=8)
    assert_refused(vitpipe("verify", "bird", "-w", "ws"), "no dataset 'bird'", "there are: birds")
    assert_refused(vitpipe("pretrain", SMALL, "--dataset", "bird", "-w", "ws"), "no dataset 'bird'")


def test_what_does_not_fit_the_dataset_is_told_before_ray_starts(vitpipe: Vitpipe, tmp_path: Path) -> None:
    make_dataset(open_store(str(tmp_path / "ws")), "digits-train", num_samples=20, size=8)
    said = vitpipe("pretrain", SMALL, "pretrain.model.num_classes=10", "-w", "ws")
    assert_refused(said, "model.num_classes is 10, but dataset digits-train has 4")
    said = vitpipe("pretrain", SMALL, "pretrain.workers=3", "-w", "ws")
    assert_refused(said, "3 workers do not divide stream.partitions 4; world sizes that work: 1, 2, 4")


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("shard", "photos", "-w", "ws"), "add --name"),
        (("shard", "photos", "--name", "x"), "which workspace?"),
        (("verify",), "which workspace?"),
        (("status",), "which workspace?"),
        (("report", "r"), "which workspace?"),
        (("evaluate", "r", "--train", "a", "-w", "ws"), "a task needs both --train and --test"),
        (("evaluate", "r", "--train", "a", "--test", "a", "-w", "ws"), "train and test are the same dataset 'a'"),
        (("shard", "photos", "-w", "ws", "--name", "../x"), "'name'"),
        (("shard", "photos", "nonsense=1", "-w", "ws", "--name", "x"), "unknown key 'nonsense'"),
        (("status", "-w", "ws", "--endpoint", "http://x"), "--endpoint is for an s3:// workspace"),
        (("demo", "--store", "tape"), "--store tape: there are local and s3"),
        (("demo", "pretrain.stepz=3"), "did you mean 'steps'?"),
        (("submit", "bake", SMALL), "'bake' cannot be submitted"),
        (("submit", "run", SMALL, "--address", "somewhere"), "somewhere is not the address of a Ray dashboard"),
        (("submit", "run", SMALL, "pretrain.stepz=3"), "did you mean 'steps'?"),
    ],
)
def test_usage_that_cannot_be_meant(vitpipe: Vitpipe, arguments: tuple[object, ...], part: str) -> None:
    assert_refused(vitpipe(*arguments), part)


def test_submitting_to_a_dead_address(vitpipe: Vitpipe) -> None:
    address = f"http://127.0.0.1:{free_port()}"
    assert_refused(vitpipe("submit", "run", SMALL, "--address", address), f"no Ray dashboard answers at {address}")


@pytest.mark.parametrize(
    "arguments", [("fly",), ("run",), ("run", SMALL, "--nonsense"), ("demo", "--seed", "-1"), ("demo", "--seed", "x")]
)
def test_usage_errors_of_the_command_line_itself(vitpipe: Vitpipe, arguments: tuple[object, ...]) -> None:
    said = vitpipe(*arguments)
    assert said.code == 2
    assert said.out == ""
    assert "Traceback" not in said.err
    assert "Usage" in said.err


@pytest.mark.parametrize("arguments", [("status",), ("verify", "birds"), ("verify", "--fast")])
def test_json_prints_one_object_and_nothing_else(
    vitpipe: Vitpipe, tmp_path: Path, arguments: tuple[object, ...]
) -> None:
    make_dataset(open_store(str(tmp_path / "ws")), "birds", num_samples=20, size=8)
    said = vitpipe(*arguments, "-w", "ws", "--json")
    assert said.code == 0
    found = json.loads(said.out)
    assert isinstance(found, dict)
    assert found["workspace"] == (tmp_path / "ws").as_uri()
    if arguments[0] == "status":
        assert [row["name"] for row in found["datasets"]] == ["birds"]
    else:
        assert found["problems"] == {"birds": []}


def test_json_of_a_refusal_leaves_stdout_empty(vitpipe: Vitpipe, tmp_path: Path) -> None:
    assert_refused(vitpipe("pretrain", SMALL, "-w", tmp_path, "--json"), "no dataset")


def test_doctor(vitpipe: Vitpipe, tmp_path: Path) -> None:
    said = vitpipe("doctor", "--json")
    names = {check["what"] for check in json.loads(said.out)["checks"]}
    assert names >= {"python", "torch", "deepspeed", "ray", "free memory"}
    (tmp_path / "file").write_text("")
    said = vitpipe("doctor", "-w", tmp_path / "file" / "below", "--json")
    assert said.code == 2
    (bad,) = (check for check in json.loads(said.out)["checks"] if check["what"] == "workspace")
    assert not bad["fine"]
    assert "doctor: not fit: " in said.lines[0]


def test_damage_is_a_failure_not_a_refusal(vitpipe: Vitpipe, tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "ws"))
    make_dataset(store, "birds", num_samples=20, size=8)
    shard = next(tmp_path.glob("ws/datasets/birds/*.tar"))
    data = bytearray(shard.read_bytes())
    data[600] ^= 1
    shard.write_bytes(data)
    said = vitpipe("verify", "-w", "ws", "--json")
    assert said.code == 1
    assert len(said.lines) == 1
    assert shard.name in said.lines[0]
    assert any(shard.name in problem for problem in json.loads(said.out)["problems"]["birds"])


def test_a_run_card_that_was_cut_is_told_in_one_line(vitpipe: Vitpipe, tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "ws"))
    put_network(store, tiny())
    store.put("runs/r/run.json", b'{"schema_version": 1, "na')
    for arguments in (("status",), ("report", "r"), ("evaluate", "r", "--train", "a", "--test", "b")):
        said = vitpipe(*arguments, "-w", "ws")
        assert said.code == 1
        assert len(said.lines) == 1
        assert "runs/r/run.json is not valid JSON" in said.lines[0]
        assert "Traceback" not in said.err


def test_what_was_not_foreseen_is_one_line_too(vitpipe: Vitpipe, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr("jobs.status.open_workspace", broken)
    said = vitpipe("status", "-w", "ws")
    assert (said.code, len(said.lines)) == (1, 1)
    assert said.lines[0] == "vitpipe: ZeroDivisionError: by zero - add --debug to see where"
