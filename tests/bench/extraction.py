"""Features of a network against its bare forward pass over the same batches, decoded beforehand: what extraction costs.

One thread computes, in both; decoding has the other core. JPEGs as in ImageNet, 500 x 375 pixels, cut to 224; a fresh
workspace each time, parts written and read back, digests compared. In turns; the ratio is the median of the rounds'.

A feature has the same bits whatever else is extracted with it: so the last block computes all tokens, also where what
the head sees is wanted alone. The bare pass beside it saves that, which is 6 % of the work: what the first row lacks.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing

import torch
from torch import Tensor

from pipeline.base.digests import sha256_hex
from pipeline.base.store import Store, open_store
from pipeline.evaluate.features import FeatureSpec, prepare_features
from pipeline.evaluate.features.storage import plan_spans
from pipeline.evaluate.model_loader import warm_network
from pipeline.evaluate.model_ref import ModelRef
from pipeline.images.transforms import EvaluationTransform
from pipeline.models.config import config_by_name
from pipeline.models.vit import ViT
from pipeline.models.weights import ModelDescription, pack_weights
from pipeline.shard.recipe import ShardRecipe
from pipeline.stream.dataset import DatasetReader
from pipeline.stream.eval_loader import prefetch_spans
from pipeline.train.device import normalise
from tests.bench.pictures import imagenet_like
from tests.bench.row import Row
from tests.support.datasets import corpus_of, shard_corpus

_IMAGES, _ROUNDS = 512, 2
_LAYERS = [FeatureSpec(), *(FeatureSpec(block, "cls+gap") for block in (-4, -3, -2, -1))]


def measure() -> list[Row]:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="vitpipe-bench-") as folder:
        store = open_store(folder)
        images = {f"{number:05d}.jpg": data for number, data in enumerate(imagenet_like(_IMAGES))}
        labels = {name: [0] for name in images}
        shard_corpus(store, "bench", corpus_of(dict(images), labels, ("one",)), ShardRecipe(max_samples=256))
        rows = [_row(store, f"Ti/16, {name}", specs) for name, specs in _CASES.items()]
        return [*rows, *_decoding(store)]


_CASES = {"what the head sees": [FeatureSpec()], "that and four blocks, in one pass": _LAYERS}


def _row(store: Store, what: str, specs: list[FeatureSpec]) -> Row:
    model_ref = _subject(store)
    network = warm_network(store, model_ref)
    batches = _batches(store, model_ref)
    ours, bare = [], []
    for _ in range(_ROUNDS + 1):
        ours.append(_extracted(store, model_ref, specs))
        bare.append(_bare(network, batches, [spec.layer for spec in specs if isinstance(spec.layer, int)]))
    ours, bare = ours[1:], bare[1:]  # the first round warms up
    ratio = statistics.median(b / a for a, b in zip(ours, bare, strict=True))
    told = (f"{_IMAGES / statistics.median(seconds):.1f} images/s" for seconds in (ours, bare))
    return Row(what, *told, ratio, 0.95)


def _subject(store: Store) -> ModelRef:
    transform = EvaluationTransform().model_dump(mode="json")
    config = config_by_name("Ti/16")
    data = pack_weights(ViT(config).state_dict(), ModelDescription(config, transform, ()))
    store.put("model.safetensors", data)
    return ModelRef(sha256_hex(data), "model.safetensors", transform, 0)


def _batches(store: Store, model_ref: ModelRef) -> list[Tensor]:
    """As extraction cuts them."""
    places = [place for span in plan_spans(_IMAGES) for place in span.batches()]
    with closing(DatasetReader(store, "bench")) as reader:
        return [batch.images for batch in prefetch_spans(reader, model_ref.evaluation_transform, places)]


def _extracted(store: Store, model_ref: ModelRef, specs: list[FeatureSpec]) -> float:
    for info in list(store.list("features/")):
        store.delete(info.key)
    started = time.perf_counter()
    prepare_features(store, model_ref, "bench", specs)
    return time.perf_counter() - started


@torch.inference_mode()
def _bare(network: ViT, batches: list[Tensor], layers: Sequence[int] = ()) -> float:
    """What the head sees, or the tokens of *layers*: where only the class token is asked for, a pass is cheaper."""
    blocks = {layer % (network.config.depth + 1) for layer in layers}
    started = time.perf_counter()
    for images in batches:
        pixels = normalise(images, torch.float32)
        network.intermediate(pixels, blocks, normed=True) if blocks else network.features(pixels)
    return time.perf_counter() - started


def _decoding(store: Store) -> list[Row]:
    """How far decoding is from being what limits: its own rate, against what the network takes."""
    model_ref = _subject(store)
    started = time.perf_counter()
    batches = _batches(store, model_ref)
    decoded = time.perf_counter() - started
    forward = _bare(warm_network(store, model_ref), batches)
    told = (f"{_IMAGES / seconds:.0f} images/s" for seconds in (decoded, forward))
    return [Row("decoding alone, on both cores, against Ti/16's forward pass on one", *told, forward / decoded)]
