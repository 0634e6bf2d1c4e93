"""``vitpipe scores``: tables, files, and comparisons whose numbers are known."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.base.store import Store, open_store
from pipeline.evaluate.metrics import of_label_scores
from pipeline.records.imported import ImportedCard, imported_card_key, imported_file
from pipeline.records.score import PIXELS, Metric, Score
from tests.support.evaluations import outcomes_of, pattern, put_result, put_run, weights_of
from tests.unit.jobs.conftest import Command

ORACLE = Metric(name="oracle_top1", value=0.93, low=0.9, high=0.95)
ECE = Metric(name="ece", value=0.0421, low=0.03, high=0.06)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Runs "first" (steps 100 and 200, the untrained network, pixels) and "second" (step 100)."""
    store = open_store(str(tmp_path / "ws"))
    put_run(store, "first", [0, 100, 200])
    put_run(store, "second", [100])
    a, b = pattern(both=65, only_a=5, only_b=15, neither=15)
    for weights, right in ((weights_of("first", 100), a), (weights_of("first", 200), b)):
        put_result(store, weights, "linear", right, settings={"l2": [0.1, 1.0]}, metrics=(ECE, ORACLE))
    put_result(store, weights_of("first", 0), "linear", [True] * 40 + [False] * 60, settings={"l2": [0.1, 1.0]})
    put_result(store, PIXELS, "linear", [True] * 50 + [False] * 50, settings={"l2": [0.1, 1.0]})
    put_result(store, weights_of("second", 100), "linear", [True] * 60 + [False] * 40, settings={"l2": [0.1, 1.0]})
    a, b = pattern(both=80, only_a=2, only_b=2, neither=16)
    for step, right in ((100, a), (200, b)):
        put_result(store, weights_of("first", step), "knn", right, settings={"k": [10]})
    for seed, (a, b) in enumerate((pattern(50, 10, 20, 20), pattern(60, 0, 10, 30))):
        for step, right in ((100, a), (200, b)):
            put_result(store, weights_of("first", step), "fewshot", right, seed=seed, settings={"shots": 10})
    put_result(store, weights_of("first", 200), "fewshot", a, settings={"shots": 5})
    return store


def line(text: str, *parts: str) -> str:
    """The one line of *text* that holds all *parts*."""
    found = [one for one in text.splitlines() if all(part in one for part in parts)]
    assert len(found) == 1, (parts, text)
    return found[0]


def test_the_table_holds_values_intervals_counts_seeds_and_baselines(command: Command, store: Store) -> None:
    code, out, err = command("scores", "-w", "ws")
    assert (code, err) == (0, "")
    row = line(out, "first", "step 200", "linear")
    for part in ("l2 0.1/1", "top1", "80.0 %", "[71.1, 86.7]", "100"):
        assert part in row
    line(out, "first", "raw pixels", "50.0 %")
    line(out, "first", "untrained", "40.0 %")
    line(out, "second", "step 100", "60.0 %")
    # seeds 0 and 1: 0.70 and 0.70; their mean, and the standard deviation between them
    assert "2: ± 0.0 %" in line(out, "step 200", "shots 10", "70.0 %")
    assert "oracle" not in out.replace("oracle_top1 (--metric", "")
    assert "also recorded: ece, oracle_top1 (--metric NAME, or --metric all)" in out
    assert "93.0" not in out, "what was chosen on test data is no result"


def test_several_seeds_are_told_with_their_deviation(command: Command, store: Store) -> None:
    _, out, _ = command("scores", "first", "-w", "ws", "--evaluator", "few*", "--step", "100")
    # 60 and 60 right at step 100: change one to 70
    put_result(store, weights_of("first", 100), "fewshot", [True] * 90 + [False] * 10, seed=2, settings={"shots": 10})
    _, out, _ = command("scores", "first", "-w", "ws", "--evaluator", "few*", "--step", "100")
    assert "3: ± 17.3 %" in line(out, "step 100", "70.0 %")  # of 60, 60, 90
    found = json.loads(command("scores", "first", "-w", "ws", "--evaluator", "few*", "--step", "100", "--json")[1])
    (mean,) = found["means"]
    assert (mean["value"], mean["seeds"]) == (pytest.approx(0.7), [0, 1, 2])
    assert mean["std_over_seeds"] == pytest.approx(math.sqrt(300) / 100)


def test_an_oracle_is_shown_with_words_only(command: Command, store: Store) -> None:
    _, out, _ = command("scores", "first", "-w", "ws", "--metric", "all", "--evaluator", "linear")
    for row in (one for one in out.splitlines() if "93.0 %" in one):
        assert "oracle_top1: " in row
    assert out.count("oracle_top1: ") == 2
    assert "0.0421" in line(out, "step 100", "ece")
    found = json.loads(command("scores", "-w", "ws", "--json")[1])
    assert not any(score["metric"].startswith("oracle") for score in found["scores"])
    assert {score["value"] for score in found["no_results"]["scores"]} == {0.93}
    assert "not a result" in found["no_results"]["what"]
    assert not any(mean["metric"].startswith("oracle") for mean in found["means"])


@pytest.mark.parametrize("ending", ["parquet", "csv"])
def test_the_file_is_read_in_one_line(command: Command, store: Store, tmp_path: Path, ending: str) -> None:
    pandas = pytest.importorskip("pandas")
    code, out, _ = command("scores", "-w", "ws", "--out", f"here/scores.{ending}")
    assert code == 0
    assert "scores in " in out
    path = tmp_path / "here" / f"scores.{ending}"
    frame = pandas.read_parquet(path) if ending == "parquet" else pandas.read_csv(path)
    assert list(frame.columns) == list(Score.model_fields)
    best = frame[
        (frame.run == "first") & (frame.step == 200) & (frame.evaluator == "linear") & (frame.metric == "top1")
    ]
    assert best.value.tolist() == [0.8]
    assert set(frame.run) == {"first", "second"}


def test_scores_of_removed_steps_and_of_imported_weights_are_there(command: Command, store: Store) -> None:
    put_run(store, "third", [200], retired=[100])
    put_result(store, weights_of("third", 100), "linear", [True] * 11 + [False] * 89)
    put_result(store, "ab" * 32, "linear", [True] * 12 + [False] * 88)
    _, out, _ = command("scores", "-w", "ws")
    line(out, "third", "step 100", "11.0 %")
    line(out, "weights abababababab", "imported", "12.0 %")
    assert "abab" not in command("scores", "third", "-w", "ws")[1]


def test_imported_weights_are_told_by_their_name(command: Command, store: Store) -> None:
    digest = "ab" * 32
    card = ImportedCard(name="vit-b16", source="file:///b16", weights=imported_file(digest, 7), transform={"size": 8})
    store.put(imported_card_key("vit-b16"), card.to_json())
    put_result(store, digest, "linear", [True] * 12 + [False] * 88, settings={"l2": [0.1, 1.0]})
    for arguments in ((), ("vit-b16",)):
        line(command("scores", *arguments, "-w", "ws")[1], "vit-b16", "imported", "12.0 %")
    assert "vit-b16" not in command("scores", "first", "-w", "ws")[1]
    found = json.loads(command("scores", "--compare", "first@100", "vit-b16", "-w", "ws", "--json")[1])
    assert found["b"] == {"name": "vit-b16", "digest": digest}


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("scores", "nobody"), "no run 'nobody'"),
        (("scores", "--task", "fish"), "nothing recorded matches --task fish - tasks: birds"),
        (("scores", "--metric", "top5"), "metrics: ece, oracle_top1, top1"),
        (("scores", "first", "--step", "300"), "nothing recorded matches --step 300 - steps: 0, 100, 200"),
        (("scores", "--out", "scores.xls"), "must end with .parquet or .csv"),
        (("scores", "--compare", "first@100", "first@300"), "no checkpoint first@300"),
        (("scores", "--compare", "first@100", "first@x"), "'first@x' names no checkpoint"),
        (("scores", "--compare", "first@100", "0123456789"), "no evaluated weights have a digest that begins so"),
        (("scores", "--compare", "first@100", "first@200", "--metric", "ece"), "'ece' cannot be compared"),
        (("scores", "first", "--compare", "first@100", "first@200"), "--compare takes no a RUN"),
        (("scores", "--compare", "first@100", "first@200", "--metric", "mAP"), "no evaluation in common"),
    ],
)
def test_what_cannot_be_meant(command: Command, store: Store, arguments: tuple[str, ...], part: str) -> None:
    code, out, err = command(*arguments, "-w", "ws")
    assert (code, out) == (2, "")
    assert part in err
    assert "Traceback" not in err


def test_an_empty_workspace(command: Command) -> None:
    code, _, err = command("scores", "-w", "empty")
    assert code == 2
    assert "no evaluation is recorded - evaluate a run with: vitpipe evaluate" in err


def compared(command: Command, *arguments: str) -> dict[str, dict[str, Any]]:
    """Comparisons by evaluator and shots."""
    code, out, err = command("scores", "-w", "ws", "--json", "--compare", *arguments)
    assert code == 0, err
    found = json.loads(out)
    return {one["evaluator"]: one for one in found["comparisons"]} | {"rest": found}


def mid_p(only_a: int, only_b: int) -> float:
    """McNemar's mid-p by counting."""
    trials, fewer = only_a + only_b, min(only_a, only_b)
    ways = [math.comb(trials, one) / 2**trials for one in range(fewer + 1)]
    return min(1.0, 2 * sum(ways) - ways[-1])


def test_comparisons_have_the_numbers_that_were_counted(command: Command, store: Store) -> None:
    found = compared(command, "first@100", "first@last")
    one = found["linear"]
    assert (one["value_a"], one["value_b"], one["num_samples"]) == (0.7, 0.8, 100)
    assert one["difference"] == pytest.approx(0.1)
    assert one["mcnemar"]["only_a"] == 5
    assert one["mcnemar"]["only_b"] == 15
    assert one["p"] == pytest.approx(mid_p(5, 15), abs=1e-12) == pytest.approx(0.0266, abs=1e-4)
    error = math.sqrt((20 / 100 - 0.1**2) / 100)
    assert one["low"] == pytest.approx(0.1 - 1.96 * error, abs=0.011)
    assert one["high"] == pytest.approx(0.1 + 1.96 * error, abs=0.011)
    assert one["probability"] == pytest.approx(0.5 * (1 + math.erf(0.1 / error / math.sqrt(2))), abs=0.01)
    assert "first@200 is better than first@100 with probability" in one["sentence"]
    same = found["knn"]
    assert (same["difference"], same["p"], same["probability"]) == (0.0, 1.0, pytest.approx(0.5, abs=0.02))


def test_seeds_are_averaged_sample_by_sample(command: Command, store: Store) -> None:
    one = compared(command, "first@100", "first@200")["fewshot"]
    assert one["seeds"] == [0, 1]
    assert one["num_seeds"] == 2
    assert (one["value_a"], one["value_b"]) == (pytest.approx(0.6), pytest.approx(0.7))
    # per sample, (B - A) averaged over the two seeds: 50 rows of 0; 10 of -1/2; 10 of +1/2 (60..69) whose second seed
    # gains another 1/2; 10 more of +1/2; 20 rows of 0
    change = [0.0] * 50 + [-0.5] * 10 + [0.5 + 0.5] * 10 + [0.5] * 10 + [0.0] * 20
    mean = sum(change) / 100
    error = math.sqrt(sum((value - mean) ** 2 for value in change) / 100 / 100)
    assert one["difference"] == pytest.approx(mean)
    assert one["low"] == pytest.approx(mean - 1.96 * error, abs=0.01)
    assert one["p"] == pytest.approx(math.erfc(mean / error / math.sqrt(2)), rel=0.2)
    assert one["mcnemar"] is None
    assert "mean over 2 seeds" in one["sentence"]


def test_p_values_are_adjusted_for_the_table(command: Command, store: Store) -> None:
    found = compared(command, "first@100", "first@200")
    p = sorted((found[name]["p"], found[name]["p_holm"]) for name in ("linear", "fewshot", "knn"))
    first, second, third = p
    assert first[1] == pytest.approx(3 * first[0])
    assert second[1] == pytest.approx(max(first[1], 2 * second[0]))
    assert third[1] == 1.0
    alone = json.loads(
        command("scores", "-w", "ws", "--json", "--compare", "first@100", "first@200", "--evaluator", "linear")[1]
    )
    (one,) = alone["comparisons"]
    assert one["p_holm"] == one["p"], "one comparison needs no adjusting"


def test_what_cannot_be_compared_is_told_with_the_reason(command: Command, store: Store) -> None:
    rest = compared(command, "first@100", "first@200")["rest"]
    (one,) = rest["not_compared"]
    assert (one["evaluator"], one["side"], one["settings"]) == ("fewshot", "b", {"shots": 5})
    assert one["reason"] == "the other has it with other settings: shots: 5 against 10"
    put_result(store, weights_of("second", 100), "knn", [True] * 100, settings={"k": [10]}, data="other")
    _, out, _ = command("scores", "-w", "ws", "--compare", "first", "second")
    assert "Not compared" in out
    assert "the other's is on other data, though also called birds" in out
    assert "the other has none" in out


def test_a_digest_names_weights(command: Command, store: Store) -> None:
    found = compared(command, "first@100", weights_of("first", 200)[:10])["rest"]
    assert found["b"] == {"name": f"weights {weights_of('first', 200)[:12]}", "digest": weights_of("first", 200)}
    put_result(store, "abcdef00" + "0" * 56, "knn", [True])
    put_result(store, "abcdef11" + "0" * 56, "knn", [True])
    code, _, err = command("scores", "-w", "ws", "--compare", "first", "abcdef")
    assert code == 2
    assert "'abcdef' begins 2 digests: abcdef000000, abcdef110000 - give more" in err


def test_other_metrics_are_compared_from_the_same_outcomes(command: Command, store: Store) -> None:
    one = compared(command, "first@100", "first@200", "--metric", "nll")["linear"]
    right, wrong = -math.log(0.7), -math.log(0.15)
    assert one["value_a"] == pytest.approx(0.7 * right + 0.3 * wrong, abs=1e-5)
    assert one["difference"] == pytest.approx(0.1 * (right - wrong), abs=1e-5)
    assert one["probability"] > 0.95, "less is better"
    put_result(store, weights_of("second", 100), "ridge", outcomes_of([True] * 9, calibrated=False))
    put_result(store, weights_of("first", 100), "ridge", outcomes_of([True] * 9, calibrated=False))
    found = compared(command, "first@100", "second@100", "--metric", "nll")["rest"]
    (reason,) = (one["reason"] for one in found["not_compared"] if one["side"] == "both")
    assert reason == "cannot compare nll: the outcomes hold no probabilities"


def test_several_labels_are_compared_by_their_own_headline(command: Command, store: Store) -> None:
    targets = np.array([[row % 2, row % 3 == 0] for row in range(60)])
    keys = tuple(f"k{row:02d}" for row in range(60))
    for step, noise in ((100, 5), (200, 0)):
        scores = targets + noise * np.random.default_rng(step).random((60, 2))
        found = of_label_scores(keys, targets, scores, calibrated=False)
        put_result(store, weights_of("first", step), "linear", found, task="many")
    one = compared(command, "first@100", "first@200", "--task", "many")["linear"]
    assert one["metric"] == "mAP"
    assert one["value_b"] == 1.0
    assert one["probability"] > 0.99
    assert "mAP" in line(command("scores", "-w", "ws", "--task", "many", "--step", "200")[1], "first", "100.0 %")


def test_changed_outcomes_are_not_compared(command: Command, store: Store) -> None:
    result = put_result(store, weights_of("second", 100), "knn", [True] * 100, settings={"k": [10]})
    (key,) = (info.key for info in store.list(f"evaluations/{result.id}/outcomes"))
    store.put(key, store.read(key)[:-1] + b"x")
    found = compared(command, "first@200", "second")["rest"]
    (reason,) = (one["reason"] for one in found["not_compared"] if one["side"] == "both")
    assert f"{key} is not what its result lists" in reason


def test_published_values_stand_beside_the_same_data(command: Command, store: Store) -> None:
    assert "ViT paper" not in command("scores", "-w", "ws")[1]
    put_result(store, weights_of("first", 200), "linear", [True] * 30_000 + [False] * 20_000, task="imagenet-1k")
    _, out, _ = command("scores", "-w", "ws", "--task", "imagenet-1k")
    assert "88.55 %" in line(out, "ViT paper", "ViT-H/14 on JFT-300M", "finetune", "Table 2")
    assert "72.00 %" in line(out, "ViT paper", "iGPT-XL", "linear")
    found = json.loads(command("scores", "-w", "ws", "--task", "imagenet-1k", "--json")[1])
    assert [score["value"] for score in found["scores"]] == [0.6], "they are no scores of ours"
