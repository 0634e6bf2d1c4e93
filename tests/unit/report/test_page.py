"""The page and the summary: fields, escaping, determinism, and what is missing."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path

import numpy as np
import pytest

from pipeline.base.digests import sha256_hex
from pipeline.base.errors import DamageError, InputError
from pipeline.base.progress import Silent
from pipeline.base.store import Store
from pipeline.records.dataset import read_dataset_card
from pipeline.report.stage import build_report
from tests.support.example_run import DATASET, RUN, build_example, example_arrays, metrics_row, put_inspection
from tests.unit.report.conftest import report

HOSTILE = "<script>alert(1)</script>"


def test_the_summary_is_stored_last_and_says_what_was_returned(built) -> None:
    stored = json.loads(built.store.read("reports/first/summary.json"))
    assert stored == built.summary
    names = ("report.html", "scores.parquet", "summary.json")
    paths = [built.store.local_path(f"reports/first/{name}") for name in names]
    assert max(paths, key=lambda path: path.stat().st_mtime_ns).name == "summary.json"
    assert Path(stored["report"]) == paths[0]


def test_summary_fields(built) -> None:
    summary = built.summary
    assert summary["dataset"] == {"name": DATASET, "digest": sha256_hex(b"dataset"), "samples": 59_996, "rejected": 3}
    assert summary["run"]["name"] == RUN
    assert summary["run"]["seconds"] == summary["seconds"]["pretrain"] == 412.8
    assert 180 < summary["run"]["images_per_second"] < 200
    assert summary["seconds"]["shard"] == 21.4
    fields = {"evaluator", "dataset", "step", "metric", "value", "low", "high", "num_samples", "seed", "baseline"}
    assert all(set(score) == fields for score in summary["scores"])
    assert [verdict["beats_both_baselines"] for verdict in summary["verdicts"]] == ["yes", "yes"]


def test_losses_are_bit_exact_and_the_later_attempt_counts(built) -> None:
    losses = built.summary["run"]["losses"]
    assert [step for step, _ in losses] == list(range(1, 301))
    assert all(loss == metrics_row(step, "0001").loss for step, loss in losses)
    assert float.fromhex(losses[0][1]) == pytest.approx(2.3, abs=0.2)


def test_metrics_of_the_later_attempt_replace_those_of_the_earlier(tmp_path: Path) -> None:
    store = build_example(tmp_path, curves={}, artefacts=False)
    later = metrics_row(100, "0001").model_copy(update={"loss": (9.0).hex()})
    store.put(f"runs/{RUN}/metrics/0010/part-00000.jsonl", later.model_dump_json().encode() + b"\n")
    losses = dict(report(store).summary["run"]["losses"])
    assert float.fromhex(losses[100]) == 9.0
    assert losses[99] == metrics_row(99, "0001").loss


def test_pretrain_seconds_come_from_the_metrics_when_no_stage_was_timed(tmp_path: Path) -> None:
    summary = report(build_example(tmp_path, curves={}, artefacts=False, seconds=False)).summary
    assert summary["seconds"] == {}
    assert 300 < summary["run"]["seconds"] < 500


def test_the_page_is_self_contained(built) -> None:
    assert not re.findall(r'(?:src|href)="(?!data:)[^"]*"', built.page)
    assert "http:" not in built.page
    assert "https:" not in built.page
    assert "<script" not in built.page
    assert str(built.store.uri) not in built.page


def test_every_picture_has_words(built) -> None:
    tags = re.findall(r"<img[^>]*>", built.page)
    assert len(tags) > 30
    assert all(re.search(r'alt="[^"]+"', tag) for tag in tags)


def test_headline_and_sentences_are_on_the_page(built) -> None:
    text = html.unescape(built.page)
    assert "A Vision Transformer (vit_tiny) was trained on 59,996 images of fashion-mnist in 10 classes" in text
    assert "By itself it recognises 84.2 % [83.5, 84.9] of the test images of fashion-mnist." in text
    for verdict in built.summary["verdicts"]:
        assert verdict["sentence"] in text


def test_a_lost_comparison_is_said_on_the_page(tmp_path: Path) -> None:
    curves = {("linear", "digits"): (0.97, (0.7, 0.8, 0.9, 0.95))}
    page = report(build_example(tmp_path, curves=curves, artefacts=False)).page
    assert '<span class="badge">No</span>' in page
    assert '<span class="badge">Yes' not in page


def test_names_from_users_are_harmless(tmp_path: Path) -> None:
    names = (HOSTILE, '"><img src=x onerror=alert(1)>', "$\\frac{", "a & b", "{{ 7 * 7 }}", "Sandal")
    page = report(build_example(tmp_path, class_names=names)).page
    assert "<script" not in page
    assert "<img src=x" not in page
    assert html.escape(HOSTILE) in page
    assert "{{ 7 * 7 }}" in page


def test_same_inputs_give_the_same_bytes_in_another_place(built, tmp_path: Path) -> None:
    again = report(build_example(tmp_path))
    assert again.page == built.page
    assert again.store.read("reports/first/scores.parquet") == built.store.read("reports/first/scores.parquet")
    assert {**again.summary, "report": ""} == {**built.summary, "report": ""}


def test_nothing_inspected(tmp_path: Path) -> None:
    page = report(build_example(tmp_path, artefacts=False)).page
    for what in ("Patch filters", "Position embeddings", "Sample images", "Confusion matrix"):
        assert f"{what}: not recorded." in page


def test_one_missing_array_leaves_the_others(tmp_path: Path) -> None:
    store = build_example(tmp_path, curves={}, artefacts=False)
    arrays = example_arrays(10)
    del arrays["position_similarity"]
    put_inspection(store, 300, 10, arrays)
    page = report(store).page
    assert page.count(": not recorded.") == 1
    assert "Position embeddings: not recorded." in page


def artefacts_of(store: Store, identity: str) -> str:
    """Where the artefacts of an evaluation stand."""
    (key,) = (info.key for info in store.list(f"evaluations/{identity}/artefacts-"))
    return key


def test_a_result_whose_artefacts_are_gone(tmp_path: Path) -> None:
    store = build_example(tmp_path, curves={}, artefacts=False)
    identity = put_inspection(store, 300, 10)
    store.delete(artefacts_of(store, identity))
    assert report(store).page.count(": not recorded.") == 4


def test_artefacts_that_are_not_what_the_result_lists_are_refused(tmp_path: Path) -> None:
    store = build_example(tmp_path, curves={}, artefacts=False)
    identity = put_inspection(store, 300, 10)
    store.put(artefacts_of(store, identity), b"something else")
    with pytest.raises(DamageError, match=identity):
        report(store)


def test_arrays_of_the_wrong_shape_are_refused(tmp_path: Path) -> None:
    store = build_example(tmp_path, curves={}, artefacts=False)
    put_inspection(store, 300, 10, {"patch_filters": np.zeros((4, 4), np.float32)})
    with pytest.raises(DamageError, match="patch_filters"):
        report(store)


def test_odd_arrays_still_make_pictures(tmp_path: Path) -> None:
    names = tuple(f"class number {place}" for place in range(40))
    store = build_example(tmp_path, curves={}, artefacts=False, class_names=names)
    arrays = example_arrays(40)
    arrays["patch_filters"] = np.full((3, 32, 32, 3), np.nan, np.float32)
    arrays["position_similarity"] = np.ones((1, 1, 1, 1), np.float32)
    arrays["sample_labels"][:] = 99
    put_inspection(store, 300, 40, arrays)
    page = report(store).page
    assert "is class 99" in page
    assert "Confusion of 40 classes" in page


def test_a_run_without_evaluations(tmp_path: Path) -> None:
    built = report(build_example(tmp_path, curves={}, artefacts=False))
    assert "No evaluation of this run is recorded." in built.page
    assert "Not known: no linear probe" in built.page
    assert built.summary["scores"] == built.summary["verdicts"] == []


def test_a_run_without_checkpoints_and_metrics(tmp_path: Path) -> None:
    store = build_example(tmp_path, curves={}, artefacts=False, steps=(), seconds=False)
    for info in list(store.list(f"runs/{RUN}/metrics/")):
        store.delete(info.key)
    built = report(store)
    assert "There is no checkpoint of a trained model yet." in built.page
    assert "Loss, learning rate and images per second: not recorded." in built.page
    run = built.summary["run"]
    assert (run["losses"], run["images_per_second"], run["seconds"]) == ([], None, 0)


def test_a_dataset_that_was_made_again_is_not_passed_off_as_the_run_s(tmp_path: Path) -> None:
    store = build_example(tmp_path, curves={}, artefacts=False)
    other = read_dataset_card(store, DATASET).model_copy(update={"digest": "0" * 64, "num_samples": 7})
    store.put(f"datasets/{DATASET}/dataset.json", other.to_json())
    built = report(store)
    assert built.summary["dataset"] == {
        "name": DATASET,
        "digest": sha256_hex(b"dataset"),
        "samples": None,
        "rejected": None,
    }
    assert "now has digest 000000000000" in built.page


def test_a_missing_run_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nobody"):
        build_report(build_example(tmp_path), "nobody", name="n", code_version="0", progress=Silent())


def test_a_failed_rebuild_leaves_no_report_that_claims_to_exist(tmp_path: Path, monkeypatch) -> None:
    store = build_example(tmp_path, curves={}, artefacts=False)
    report(store)
    put = type(store).put

    def failing(self, key: str, data: bytes) -> None:
        if key.endswith(".parquet"):
            raise OSError("no room")
        put(self, key, data)

    monkeypatch.setattr(type(store), "put", failing)
    with pytest.raises(OSError, match="no room"):
        report(store)
    assert store.head("reports/first/summary.json") is None
