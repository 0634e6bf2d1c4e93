"""``init``: which weights a new run begins with, what of the head, and what is refused before anything starts."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

import jobs.pretrain
from jobs.base.recipe import ChainRecipe
from pipeline.base.digests import sha256_hex
from pipeline.base.errors import DamageError, InputError, MismatchError, RefusedError
from pipeline.base.progress import Silent
from pipeline.base.seeds import derive
from pipeline.base.store import Store, open_store
from pipeline.models.config import ViTConfig
from pipeline.models.vit import ViT
from pipeline.models.weights import ModelDescription, pack_weights
from pipeline.pretrain.initial_weights import check_initial, first_network, load_initial_weights
from pipeline.pretrain.objectives.objective import build_objective
from pipeline.pretrain.run_card import open_run_card
from pipeline.records.run import CheckpointCard, StoredFile, checkpoint_card_key, step_prefix
from tests.support.datasets import make_dataset
from tests.support.networks import images, randomised
from tests.unit.pretrain.test_recipe import card, problems, recipe

CLASSES = card().class_names
CONFIG = recipe().model.model_copy(update={"num_classes": len(CLASSES)})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "workspace"))


def weights_of(folder: Path, vit: ViT, class_names: tuple[str, ...] = CLASSES) -> Path:
    """A model file."""
    path = folder / "mine.safetensors"
    path.write_bytes(pack_weights(vit.state_dict(), ModelDescription(vit.config, {}, class_names)))
    return path


def checkpoint(store: Store, run: str, step: int, path: Path) -> None:
    """A checkpoint whose weights are those of *path*."""
    file = StoredFile(name="0001/model.safetensors", num_bytes=1, sha256=sha256_hex(path.read_bytes()))
    made = CheckpointCard(
        run=run,
        step=step,
        position=step,
        updates=step,
        attempt="0001",
        world_size=1,
        zero_stage=1,
        dtype="bf16",
        fingerprint="f",
        dataset_digest="d",
        code_version="c",
        files=(),
        weights=file,
    )
    store.put(f"{step_prefix(run, step)}/{file.name}", path.read_bytes())
    store.put(checkpoint_card_key(run, step), made.to_json())


def begun(store: Store, init: str | Path, config: ViTConfig = CONFIG, sha256: str = "", *overrides: str) -> ViT:
    """The network of a new run that begins with *init*."""
    made = recipe(f"init={init}", *overrides)
    names = card(config.num_classes).class_names
    network = first_network(
        made,
        config,
        build_objective(made.objective),
        lambda vit: load_initial_weights(vit, names, store, {}, made, sha256),
    )
    assert isinstance(network, ViT)
    return network.eval()


def drawn(config: ViTConfig = CONFIG) -> ViT:
    """The network of a run from scratch."""
    return ViT(config, seed=derive(0, "weights")).eval()


def test_a_run_begins_with_those_weights_whole(store: Store, tmp_path: Path) -> None:
    theirs = randomised(CONFIG)
    ours = begun(store, weights_of(tmp_path, theirs))
    assert torch.equal(ours(images(size=8)), theirs(images(size=8)))
    assert not torch.equal(ours(images(size=8)), drawn()(images(size=8)))


def test_or_with_those_of_a_checkpoint(store: Store, tmp_path: Path) -> None:
    theirs = randomised(CONFIG)
    checkpoint(store, "base", 7, weights_of(tmp_path, theirs))
    assert torch.equal(begun(store, "base@7")(images(size=8)), theirs(images(size=8)))


@pytest.mark.parametrize(
    ("num_classes", "names"), [(4, ("a", "b", "c", "d")), (9, ()), (0, ())], ids=["others", "more", "no head"]
)
def test_the_head_of_other_classes_begins_as_drawn(
    store: Store, tmp_path: Path, num_classes: int, names: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    theirs = randomised(CONFIG.model_copy(update={"num_classes": num_classes}))
    with caplog.at_level(logging.INFO):
        ours = begun(store, weights_of(tmp_path, theirs, names)).state_dict()
    scratch, given = drawn().state_dict(), theirs.state_dict()
    for name, tensor in ours.items():
        assert torch.equal(tensor, scratch[name] if name.startswith("head.") else given[name]), name
    assert "nothing for: head.bias, head.weight; they begin as drawn" in caplog.text


def test_weights_that_name_no_classes_count_by_their_number(store: Store, tmp_path: Path) -> None:
    theirs = randomised(CONFIG)
    ours = begun(store, weights_of(tmp_path, theirs, ()))
    assert torch.equal(ours(images(size=8)), theirs(images(size=8)))


def test_another_pre_logits_layer_begins_as_drawn(store: Store, tmp_path: Path) -> None:
    theirs, config = randomised(CONFIG), CONFIG.model_copy(update={"pre_logits": 16})
    ours = begun(store, weights_of(tmp_path, theirs), config).state_dict()
    scratch = drawn(config).state_dict()
    assert torch.equal(ours["pre_logits.weight"], scratch["pre_logits.weight"])
    assert torch.equal(ours["norm.weight"], theirs.state_dict()["norm.weight"])


def test_the_run_card_records_it_and_it_is_another_run(store: Store, tmp_path: Path) -> None:
    path = weights_of(tmp_path, randomised(CONFIG))
    made = recipe(f"init={path}")
    digest = check_initial(store, {}, made)
    assert digest == sha256_hex(path.read_bytes())
    run = open_run_card(store, made, card(), "code", init_sha256=digest)
    assert (run.recipe["init"], run.init_sha256) == (path.as_uri(), digest)
    assert run.fingerprint != open_run_card(store, recipe("run=s"), card(), "code").fingerprint
    with pytest.raises(MismatchError, match=r"'r' exists with another recipe: init:"):
        open_run_card(store, recipe(), card(), "code")


def test_weights_that_change_after_the_run_was_made_are_refused(store: Store, tmp_path: Path) -> None:
    path = weights_of(tmp_path, randomised(CONFIG))
    digest = check_initial(store, {}, recipe(f"init={path}"))
    begun(store, path, CONFIG, digest)
    weights_of(tmp_path, randomised(CONFIG, seed=8))
    with pytest.raises(MismatchError, match=r"mine.safetensors has changed since run r was made: sha256"):
        begun(store, path, CONFIG, digest)


def test_what_is_resumed_or_forked_needs_no_weights(store: Store, tmp_path: Path) -> None:
    """Own run -> fork's parent -> init: the weights may be gone when they do not count any more."""
    gone = recipe("init=/nowhere/mine.safetensors")
    with pytest.raises(InputError):
        check_initial(store, {}, gone)
    assert check_initial(store, {}, gone, parent="base@7") == ""
    checkpoint(store, "r", 0, weights_of(tmp_path, randomised(CONFIG)))
    assert check_initial(store, {}, gone) == ""


def test_a_path_is_of_the_folder_where_the_recipe_was_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert recipe("init=mine.safetensors").init == (tmp_path / "mine.safetensors").as_uri()
    assert recipe("init=s3://bucket/mine.safetensors").init == "s3://bucket/mine.safetensors"


@pytest.mark.parametrize("init", ["model.pt", "run", "http://host/x.safetensors", "@7"])
def test_what_names_no_weights_is_no_recipe(init: str) -> None:
    found = problems(f"init='{init}'")
    assert len(found) == 1
    assert found[0].startswith("'init': ")
    assert "write a .safetensors file, or RUN@STEP" in found[0]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"width": 32}, r"width: 32 -> 16"),
        ({"depth": 2}, r"depth: 2 -> 1"),
        ({"image_size": 16}, r"image_size: 16 -> 8"),
        ({"pool": "gap"}, r"pool: gap -> cls"),
    ],
)
def test_another_architecture_is_refused_with_its_fields(
    store: Store, tmp_path: Path, changes: dict[str, object], said: str
) -> None:
    theirs = ViT(CONFIG.model_copy(update=changes))
    with pytest.raises(MismatchError, match=f"is of another architecture: {said}"):
        check_initial(store, {}, recipe(f"init={weights_of(tmp_path, theirs)}"))


@pytest.mark.parametrize("data", [b"", b"no tensors at all", b'\x08\0\0\0\0\0\0\0{"a": 1}'])
def test_a_file_that_is_none_of_ours_is_refused(store: Store, tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "timm.safetensors"
    path.write_bytes(data)
    with pytest.raises(RefusedError, match=r"timm.safetensors does not describe a ViT.*vitpipe import makes a"):
        check_initial(store, {}, recipe(f"init={path}"))


def test_a_checkpoint_that_is_not_there_or_damaged(store: Store, tmp_path: Path) -> None:
    path = weights_of(tmp_path, randomised(CONFIG))
    checkpoint(store, "base", 7, path)
    assert check_initial(store, {}, recipe("init=base@7")) == sha256_hex(path.read_bytes())
    with pytest.raises(InputError, match=r"no checkpoint base@8 .*its steps: 7"):
        check_initial(store, {}, recipe("init=base@8"))
    key = f"{step_prefix('base', 7)}/0001/model.safetensors"
    store.put(key, store.read(key)[:-1] + b"\x01")
    with pytest.raises(DamageError, match="its bytes are not those"):
        check_initial(store, {}, recipe("init=base@7"))
    store.delete(key)
    with pytest.raises(DamageError, match="is missing"):
        check_initial(store, {}, recipe("init=base@7"))


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("init=/nowhere/mine.safetensors", "there is no file:///nowhere/mine.safetensors"),
        ("init=base@7", "no run|no checkpoint base@7"),
        ("model.width=32", "width: 16 -> 32"),
    ],
)
def test_the_command_refuses_it_before_anything_starts(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, override: str, said: str
) -> None:
    make_dataset(store, "d", num_samples=8, max_samples=8)
    monkeypatch.setattr(jobs.pretrain, "connected", lambda *_: pytest.fail("ray was started"))
    made = recipe(f"init={weights_of(tmp_path, randomised(CONFIG))}", override)
    with pytest.raises(RefusedError, match=said):
        jobs.pretrain.run_pretrain(ChainRecipe(workspace=store.uri), made, Silent(), None, False)
    assert not list(store.list("runs/"))


def test_masked_patches_may_begin_with_weights_that_have_a_head(store: Store, tmp_path: Path) -> None:
    theirs, made = (
        randomised(CONFIG),
        recipe(f"init={weights_of(tmp_path, randomised(CONFIG))}", "objective=masked_patches"),
    )
    network = first_network(
        made,
        made.model,
        build_objective(made.objective),
        lambda vit: load_initial_weights(vit, (), store, {}, made, ""),
    )
    inner = network.get_submodule("vit").state_dict()
    assert all(torch.equal(tensor, theirs.state_dict()[name]) for name, tensor in inner.items())
