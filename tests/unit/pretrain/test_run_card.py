"""run.json: made once, create-only; the same recipe opens it again, another is refused by its fields."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.base.errors import InputError, MismatchError
from pipeline.base.store import open_store
from pipeline.pretrain.run_card import open_run_card
from pipeline.records.imported import ImportedCard, imported_card_key, imported_file
from pipeline.records.run import read_run_card, run_prefix
from tests.unit.pretrain.test_recipe import card, recipe


def test_the_first_attempt_fixes_what_the_run_is(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    made = open_run_card(store, recipe("seed=5"), card(), "code 1")
    assert read_run_card(store, "r") == made
    assert (made.name, made.dataset_name, made.dataset_digest, made.code_version) == ("r", "d", "digest", "code 1")
    assert made.order.model_dump() == {"seed": 5, "partitions": 4, "window": 10, "batch_size": 16}
    assert made.recipe == recipe("seed=5").model_dump(mode="json")


def test_the_same_recipe_opens_it_again_and_changes_nothing(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    made = open_run_card(store, recipe(), card(), "code 1")
    before = store.read("runs/r/run.json")
    again = open_run_card(store, recipe("workers=4", "log_every=1", "checkpoint_every=3"), card(), "code 2")
    assert again == made
    assert store.read("runs/r/run.json") == before


def test_another_recipe_is_refused_with_every_field(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    open_run_card(store, recipe(), card(), "code 1")
    before = store.read("runs/r/run.json")
    with pytest.raises(MismatchError) as caught:
        open_run_card(
            store, recipe("optimizer.learning_rate=0.5", "seed=3", "workers=4"), card(digest="other"), "code 1"
        )
    said = str(caught.value)
    assert caught.value.exit_code == 2
    for field in ("optimizer.learning_rate: 0.001 -> 0.5", "seed: 0 -> 3", 'dataset_digest: "digest" -> "other"'):
        assert field in said
    assert "workers" not in said
    assert len(said.splitlines()) == 1
    assert store.read("runs/r/run.json") == before


def test_runs_of_other_names_do_not_meet(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    open_run_card(store, recipe(), card(), "code 1")
    other = open_run_card(store, recipe("run=s", "seed=3"), card(), "code 1")
    assert read_run_card(store, "s") == other


def test_the_name_of_imported_weights_is_no_name_for_a_new_run(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    made = open_run_card(store, recipe(), card(), "code 1")
    for name in ("r", "s"):
        named = ImportedCard(name=name, source="x", weights=imported_file("ab", 1), transform={})
        store.put(imported_card_key(name), named.to_json())
    with pytest.raises(InputError, match=r"'s' is the name of imported weights in .*--run") as caught:
        open_run_card(store, recipe("run=s"), card(), "code 1")
    assert caught.value.exit_code == 2
    assert store.head(f"{run_prefix('s')}/run.json") is None
    assert open_run_card(store, recipe(), card(), "code 1") == made
