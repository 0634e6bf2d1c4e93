"""``vitpipe export`` and ``vitpipe import``: what others load, what comes in, and what is refused in one line."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file

from jobs.cli import main
from pipeline.base.digests import sha256_hex
from pipeline.base.store import open_store
from pipeline.images.transforms import EvaluationTransform
from pipeline.models.config import ViTConfig
from pipeline.models.vit import ViT
from pipeline.models.weights import ModelDescription, pack_weights, unpack_model
from pipeline.records.run import CheckpointCard, OrderParameters, RunCard, StoredFile, checkpoint_card_key, step_prefix
from pipeline.train.device import normalise
from tests.support.networks import images, randomised

CONFIG = ViTConfig(image_size=16, patch_size=4, width=24, depth=2, mlp_width=40, heads=3, num_classes=3)
TRANSFORM = EvaluationTransform(size=16, resize=20, mode="short", filter="bicubic")
NAMES = ("cat", "chien", "猫")


@dataclass(frozen=True)
class Said:
    """What a command said, and its exit code."""

    code: int
    out: str
    err: str


Vitpipe = Callable[..., Said]


@pytest.fixture
def vitpipe(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Vitpipe:
    """Calls ``vitpipe`` in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["vitpipe", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        captured = capsys.readouterr()
        assert isinstance(caught.value.code, int)
        return Said(caught.value.code, captured.out, captured.err)

    return call


def packed(model: ViT, transform: EvaluationTransform = TRANSFORM) -> bytes:
    """The model file of *model*."""
    names = NAMES if model.config.num_classes else ()
    return pack_weights(model.state_dict(), ModelDescription(model.config, transform.model_dump(mode="json"), names))


def network(seed: int = 7, **changes: object) -> ViT:
    """A ViT all of whose weights are drawn."""
    return randomised(ViTConfig.model_validate(CONFIG.model_dump() | changes), seed)


@pytest.fixture
def model(tmp_path: Path) -> ViT:
    """The network of ``model.safetensors`` in the folder."""
    found = network()
    (tmp_path / "model.safetensors").write_bytes(packed(found))
    return found


def read(path: Path) -> ViT:
    """The network of an imported file."""
    return unpack_model(path.read_bytes(), str(path))[0]


def put_run(folder: Path, steps: dict[int, tuple[ViT, ViT | None]]) -> None:
    """The run ``first`` with checkpoints of *steps*: weights, and perhaps their moving average."""
    store = open_store(str(folder.absolute().as_uri()))
    order = OrderParameters(seed=0, partitions=1, window=1, batch_size=1)
    fields: dict[str, Any] = {"fingerprint": "f", "dataset_digest": "d", "code_version": "v"}
    run = RunCard(name="first", fingerprinted={}, recipe={}, dataset_name="x", order=order, **fields)
    store.put("runs/first/run.json", run.to_json())
    for step, (weights, average) in steps.items():
        stored = {}
        for name, network_ in (("model.safetensors", weights), ("ema.safetensors", average)):
            if network_ is not None:
                data = packed(network_)
                store.put(f"{step_prefix('first', step)}/0001/{name}", data)
                stored[name] = StoredFile(name=f"0001/{name}", num_bytes=len(data), sha256=sha256_hex(data))
        card = CheckpointCard(
            run="first", step=step, position=step, updates=step, attempt="0001", world_size=1, zero_stage=0,
            dtype="fp32", files=(), weights=stored["model.safetensors"], ema_weights=stored.get("ema.safetensors"),
            **fields,
        )  # fmt: skip
        store.put(checkpoint_card_key("first", step), card.to_json())


@pytest.mark.parametrize(
    "transform",
    [
        TRANSFORM,
        EvaluationTransform(size=16, resize=16, mode="square", filter="bilinear"),
        EvaluationTransform(size=16, resize=19, mode="square", filter="bicubic"),
        EvaluationTransform(size=16, resize=16, mode="short", filter="bilinear"),
    ],
)
def test_transformers_loads_a_folder_and_sees_the_same(
    vitpipe: Vitpipe, tmp_path: Path, transform: EvaluationTransform
) -> None:
    ours = network()
    (tmp_path / "model.safetensors").write_bytes(packed(ours, transform))
    said = vitpipe("export", "model.safetensors", "--format", "hf", "--out", "hf", "--json")
    assert said.code == 0, said.err
    assert json.loads(said.out)["num_parameters"] == sum(parameter.numel() for parameter in ours.parameters())
    theirs, info = transformers.AutoModelForImageClassification.from_pretrained("hf", output_loading_info=True)
    assert not any(info.values()), info
    assert tuple(theirs.config.id2label[number] for number in range(3)) == NAMES
    processor = transformers.AutoImageProcessor.from_pretrained("hf")
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    seen = processor(Image.fromarray(pixels), return_tensors="pt").pixel_values
    applied = torch.from_numpy(transform.apply(pixels).copy()).permute(2, 0, 1)[None]
    torch.testing.assert_close(seen, normalise(applied, torch.float32), rtol=0, atol=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(theirs.eval()(seen).logits, ours(seen), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", ["hf", "timm", "npz"])
def test_what_went_out_comes_in_bit_by_bit(vitpipe: Vitpipe, model: ViT, tmp_path: Path, form: str) -> None:
    out = "there.npz" if form == "npz" else "there"
    assert vitpipe("export", "model.safetensors", "--format", form, "--out", out).code == 0
    said = vitpipe("import", out, "--out", "back", "--json")
    assert said.code == 0, said.err
    told = json.loads(said.out)
    data = (tmp_path / "back" / "model.safetensors").read_bytes()
    assert (told["format"], told["sha256"]) == (form, sha256_hex(data))
    again, description = unpack_model(data, "back")
    assert again.config == model.config
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())
    if form != "npz":  # which has neither
        assert description.class_names == NAMES
        assert EvaluationTransform.model_validate(description.transform) == TRANSFORM
    else:
        assert description.class_names == ()
        assert EvaluationTransform.model_validate(description.transform).size == 16
    assert not list(tmp_path.rglob(".tmp-*"))


def test_what_transformers_wrote_comes_in(vitpipe: Vitpipe, tmp_path: Path) -> None:
    config = transformers.ViTConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40, image_size=16, patch_size=4,
        id2label={0: "a", 1: "b"}, label2id={"a": 0, "b": 1},
    )  # fmt: skip
    theirs = transformers.ViTForImageClassification(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(0.5, 0.3, generator=torch.Generator().manual_seed(parameter.numel()))
    theirs.save_pretrained("theirs")
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    preprocessor = {"size": {"height": 16, "width": 16}, "resample": 2, "image_mean": mean, "image_std": std}
    Path("theirs/preprocessor_config.json").write_text(json.dumps(preprocessor))
    for given, out in (("theirs", "a"), ("theirs/model.safetensors", "b")):
        assert vitpipe("import", given, "--out", out).code == 0
    assert Path("a/model.safetensors").read_bytes() == Path("b/model.safetensors").read_bytes()
    ours, description = unpack_model(Path("a/model.safetensors").read_bytes(), "a")
    assert ours.config.norm_epsilon == 1e-12
    assert description.class_names == ("a", "b")
    assert description.transform == {"size": 16, "resize": 16, "mode": "square", "filter": "bilinear"}
    pixels = (images() + 1) / 2
    with torch.no_grad():
        expected = theirs((pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]).logits
        torch.testing.assert_close(ours(images()), expected, rtol=1e-5, atol=1e-5)


def test_a_checkpoint_is_found_by_run_and_step(vitpipe: Vitpipe, tmp_path: Path) -> None:
    networks = {seed: network(seed) for seed in (1, 2, 3)}
    put_run(tmp_path / "ws", {9: (networks[1], networks[3]), 10: (networks[2], None)})
    for checkpoint, flags, seed in (("first@9", (), 1), ("first", (), 2), ("first@9", ("--ema",), 3)):
        out = f"out{seed}"
        said = vitpipe("export", checkpoint, "-w", "ws", *flags, "--out", out, "--json")
        assert said.code == 0, said.err
        told = json.loads(said.out)
        assert told["checkpoint"] == ("first@10" if checkpoint == "first" else checkpoint)
        assert vitpipe("import", out, "--out", f"in{seed}").code == 0
        assert torch.equal(read(tmp_path / f"in{seed}" / "model.safetensors")(images()), networks[seed](images()))
    for arguments, words in {
        ("first@10", "-w", "ws", "--ema"): "no moving average",
        ("first@11", "-w", "ws"): "no checkpoint first@11",
        ("second", "-w", "ws"): "no run 'second'",
        ("first@9",): "--workspace",
        ("first@x", "-w", "ws"): "RUN@STEP",
    }.items():
        said = vitpipe("export", *arguments, "--out", "nothing")
        assert (said.code, len(said.err.splitlines())) == (2, 1), said.err
        assert words in said.err
    damaged = tmp_path / "ws" / step_prefix("first", 10) / "0001" / "model.safetensors"
    data = bytearray(damaged.read_bytes())
    data[-1] ^= 1
    damaged.write_bytes(data)
    said = vitpipe("export", "first", "-w", "ws", "--out", "nothing")
    assert (said.code, "model.safetensors" in said.err) == (1, True)
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize("form", ["hf", "npz"])
def test_nothing_is_ever_replaced(vitpipe: Vitpipe, model: ViT, tmp_path: Path, form: str) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("kept")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("kept")
    (tmp_path / "link").symlink_to("nowhere")
    for out in ("full", "empty", "file", "link"):
        said = vitpipe("export", "model.safetensors", "--format", form, "--out", out)
        assert said.code == 2
        assert "nothing is replaced" in said.err
    assert (tmp_path / "file").read_text() == (tmp_path / "full" / "mine").read_text() == "kept"
    said = vitpipe("export", "model.safetensors", "--format", form, "--out", "file/below")
    assert (said.code, "file/below" in said.err) == (1, True)
    assert not list(tmp_path.rglob(".tmp-*"))


def test_nothing_is_left_of_an_export_that_fails(
    vitpipe: Vitpipe, model: ViT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_args: object, **_options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pipeline.evaluate.interop.save_file", full)
    before = set(tmp_path.iterdir())
    said = vitpipe("export", "model.safetensors", "--out", "hf")
    assert (said.code, "No space left on device" in said.err) == (1, True)
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("change", "form", "said"),
    [
        ({"pool": "gap"}, "hf", "average pooling"),
        ({"pre_logits": 9}, "timm", "pre-logits"),
        ({"gelu": "exact"}, "npz", "GELU"),
    ],
)
def test_what_the_other_side_cannot_compute_is_refused(
    vitpipe: Vitpipe, tmp_path: Path, change: dict[str, object], form: str, said: str
) -> None:
    (tmp_path / "model.safetensors").write_bytes(packed(network(**change)))
    told = vitpipe("export", "model.safetensors", "--format", form, "--out", "there")
    assert (told.code, len(told.err.splitlines())) == (2, 1)
    assert said in told.err
    assert not (tmp_path / "there").exists()


def test_bad_input_is_refused_in_one_line(vitpipe: Vitpipe, model: ViT, tmp_path: Path) -> None:
    save_file({"w": torch.zeros(3)}, tmp_path / "other.safetensors")
    save_file({"vit.embeddings.cls_token": torch.zeros(3)}, tmp_path / "alone.safetensors")
    (tmp_path / "text.npz").write_text("hello")
    (tmp_path / "folder").mkdir()
    for arguments, words in {
        ("import", "model.safetensors"): "of this program already",
        ("import", "other.safetensors"): "no ViT that is known here",
        ("import", "alone.safetensors"): "no config.json stands beside it",
        ("import", "text.npz"): "no npz file",
        ("import", "folder"): "no weights at folder",
        ("import", "nowhere.npz"): "no weights at nowhere.npz",
        ("import", "text.npz", "--gelu", "quick"): "--gelu quick",
        ("export", "model.safetensors", "--format", "onnx"): "--format onnx",
        ("export", "nowhere.safetensors"): "there is no nowhere.safetensors",
        ("export", "model.safetensors", "--ema"): "ema.safetensors",
    }.items():
        said = vitpipe(*arguments, "--out", "out")
        assert (said.code, len(said.err.splitlines())) == (2, 1), (arguments, said.err)
        assert words in said.err
        assert not (tmp_path / "out").exists()
