"""Weights from anywhere are taken into a workspace under a name, and judged like a run's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipeline.base.errors import InputError
from pipeline.base.progress import Silent
from pipeline.base.store import Store, open_store
from pipeline.evaluate.discovery import make_planner, plan_all
from pipeline.evaluate.features import load_features
from pipeline.evaluate.imported_weights import read_weights, store_weights
from pipeline.evaluate.worker import run_evaluation
from pipeline.models.vit import ViT
from pipeline.models.weights import ModelDescription, pack_weights
from pipeline.records.imported import list_imported_cards, read_imported_card
from pipeline.records.score import list_results
from tests.support.evaluations import RUN, make_workspace, suite_recipe
from tests.support.stored_models import TRANSFORM, tiny


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A workspace with one run, and datasets."""
    store = open_store(str(tmp_path / "ws"))
    make_workspace(store, [100])
    return store


def put_weights(folder: Path, seed: int = 7, transform: dict[str, object] = TRANSFORM) -> Path:
    """A folder as ``vitpipe import`` writes it."""
    folder.mkdir()
    config = tiny()
    names = tuple(f"class-{label}" for label in range(config.num_classes))
    data = pack_weights(ViT(config, seed=seed).state_dict(), ModelDescription(config, transform, names))
    (folder / "model.safetensors").write_bytes(data)
    return folder


def test_weights_are_kept_under_a_name_and_judged_there(store: Store, tmp_path: Path) -> None:
    folder = put_weights(tmp_path / "theirs")
    before = [info.key for info in store.list()]
    weights = read_weights(store, str(folder), "theirs")
    assert [info.key for info in store.list()] == before, "reading stores nothing"
    store_weights(store, weights)
    file = folder / "model.safetensors"
    assert store.read(weights.card.weights_key) == file.read_bytes()
    assert (weights.card.source, weights.card.transform) == (folder.as_uri(), TRANSFORM)
    file.unlink()
    planned = plan_all(store, "theirs", [suite_recipe(1)])
    shown = f"weights {weights.card.weights.sha256[:12]}"
    assert [item.name for item in planned] == [f"knn on task of {shown}", f"fewshot on task of {shown} (2-shot)"]
    assert load_features(store, planned[0].model_ref, "test").features.shape == (30, 32)
    for item in planned:
        assert run_evaluation(store, item)
    assert {result.key.weights_digest for result in list_results(store)} == {weights.card.weights.sha256}


def test_the_raw_pixels_stand_beside_them_and_last_is_what_they_are(store: Store, tmp_path: Path) -> None:
    store_weights(store, read_weights(store, str(put_weights(tmp_path / "theirs")), "theirs"))
    recipe = suite_recipe(1, baselines=True)
    last = tuple(entry.model_copy(update={"checkpoints": "last"}) for entry in recipe.suite)
    recipe = recipe.model_copy(update={"suite": last})
    names = [item.name.partition(" of ")[2].partition(" ")[0] for item in plan_all(store, "theirs", [recipe])]
    assert names == ["pixels", "weights", "pixels", "weights"]


def test_a_name_is_given_once(store: Store, tmp_path: Path) -> None:
    first, second = put_weights(tmp_path / "one"), put_weights(tmp_path / "two", seed=8)
    file = str(first / "model.safetensors")
    weights = read_weights(store, file)
    assert weights.card.name == f"imported-{weights.card.weights.sha256[:12]}"
    store_weights(store, read_weights(store, file, "mine"))
    store_weights(store, read_weights(store, file, "mine"))
    assert read_weights(store, file).card.name == "mine", "the name that they have"
    store_weights(store, read_weights(store, file, "ours"))
    assert [card.name for card in list_imported_cards(store)] == ["mine", "ours"]
    with pytest.raises(InputError, match=r"'mine' is the name of other weights, from file:.*/one.* - give another"):
        read_weights(store, str(second), "mine")
    with pytest.raises(InputError, match="'made' is the name of a run"):
        read_weights(store, str(second), RUN)
    late = read_weights(store, str(second), "late")
    store_weights(store, read_weights(store, file, "late"))
    with pytest.raises(InputError, match="'late' is the name of other weights"):
        store_weights(store, late)
    card = read_imported_card(store, "late")
    assert card is not None
    assert card.weights == weights.card.weights


def test_what_is_no_model_of_ours_is_refused(store: Store, tmp_path: Path) -> None:
    def refused(uri: Path | str, said: str) -> None:
        with pytest.raises(InputError, match=said):
            read_weights(store, str(uri))

    refused(tmp_path / "nothing", "there are no weights at .*nothing - name a model.safetensors, or a folder")
    refused(tmp_path, "there are no weights at")
    refused(RUN, "'made' is a run of .* - leave --weights out: vitpipe evaluate made")
    refused(f"{RUN}@100", "'made' is a run of .*")
    (tmp_path / "text").write_text("hello " * 10)
    refused(tmp_path / "text", "text does not describe a ViT of this program .* vitpipe import FILE")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "model.pt")
    refused(tmp_path / "model.pt", "model.pt does not describe a ViT")
    whole = (put_weights(tmp_path / "whole") / "model.safetensors").read_bytes()
    (tmp_path / "cut").write_bytes(whole[:-50])
    refused(tmp_path / "cut", "cut: weights do not fit the architecture")
    refused(put_weights(tmp_path / "untold", transform={}), "untold does not tell how its input is made")
    refused(put_weights(tmp_path / "odd", transform={"size": -1}), "odd does not tell how its input is made")
    refused(put_weights(tmp_path / "large", transform={"size": 16}), "makes 16 px, its network takes 8 px")
    assert not list_imported_cards(store)


def test_weights_that_are_gone_are_named_and_can_be_given_again(store: Store, tmp_path: Path) -> None:
    folder = put_weights(tmp_path / "theirs")
    weights = read_weights(store, str(folder), "theirs")
    store_weights(store, weights)
    store.delete(weights.card.weights_key)
    with pytest.raises(InputError, match=r"the weights of 'theirs' are not stored whole - add --weights file:.*theirs"):
        plan_all(store, "theirs", [suite_recipe(1)])
    assert len(plan_all(store, "theirs", [suite_recipe(1)], with_retired=True)) == 2
    store_weights(store, read_weights(store, str(folder)))
    assert len(plan_all(store, "theirs", [suite_recipe(1)])) == 2


def test_what_is_neither_a_run_nor_imported_is_told_what_there_is(store: Store, tmp_path: Path) -> None:
    store_weights(store, read_weights(store, str(put_weights(tmp_path / "theirs")), "theirs"))
    with pytest.raises(InputError, match=r"no run 'thiers' in .* - there are: made, theirs"):
        make_planner(store, "thiers", Silent())
