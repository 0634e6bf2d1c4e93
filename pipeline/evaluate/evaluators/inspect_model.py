"""Pictures of a network, stored as arrays for the report to draw: its patch filters, the similarity of its position
embeddings (ViT, arXiv 2010.11929, Figure 7), its predictions on the first test images, and its confusion matrix.

Shapes: D width, P patch size, C colours, g patches along a side, S image size.
"""

from __future__ import annotations

from contextlib import closing
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.base.store.protocol import Store
from pipeline.evaluate.evaluators.classify import classify_samples, load_vit
from pipeline.evaluate.metrics.classification import confusion
from pipeline.evaluate.metrics.outcomes import EvalOutput
from pipeline.evaluate.plan import PlannedEvaluation
from pipeline.evaluate.task_data import open_task
from pipeline.models.vit import ViT
from pipeline.stream.dataset import DatasetReader
from pipeline.stream.eval_loader import prefetch_spans

NUM_EXAMPLES = 24  # test images shown with their predictions
_NUM_FILTERS = 28  # as in ViT Figure 7


def run(workspace: Store, planned: PlannedEvaluation) -> EvalOutput:
    """Pictures of the network, its predictions on the first test images, and its confusion matrix."""
    model, data = load_vit(workspace, planned), open_task(workspace, planned)
    data.require_one_label("inspect")
    outcomes = classify_samples(model, data, planned).outcomes
    examples = slice(0, NUM_EXAMPLES)
    artefacts: dict[str, NDArray[Any]] = {
        "patch_filters": patch_filters(model),
        "position_similarity": position_similarity(model),
        "sample_images": _first_images(workspace, planned),
        "sample_labels": outcomes.labels[examples],
        "sample_predictions": outcomes.predictions[examples],
        "sample_probabilities": outcomes.probabilities[examples],
        "confusion": confusion(outcomes, data.num_classes),
    }
    return EvalOutput(outcomes, data.num_classes, artefacts=artefacts)


def patch_filters(model: ViT) -> NDArray[np.float32]:
    """The first principal components of the patch projection, (28 or fewer, P, P, C)."""
    filters = model.patches.filters()  # (D, P, P, C)
    flat = filters.reshape(filters.shape[0], -1).double()
    _, _, components = torch.linalg.svd(flat - flat.mean(0), full_matrices=False)
    chosen = components[:_NUM_FILTERS]
    sign = torch.sign(chosen.gather(1, chosen.abs().argmax(1, keepdim=True)))  # svd leaves the sign open
    pictures: NDArray[np.float32] = (chosen * sign).reshape(-1, *filters.shape[1:]).float().numpy()
    return pictures


def position_similarity(model: ViT) -> NDArray[np.float32]:
    """Cosine similarity of each patch's position embedding with all others, (g, g, g, g)."""
    grid = model.config.grid
    positions = model.positions.detach()[0, -(grid * grid) :].double()
    unit = torch.nn.functional.normalize(positions, dim=1)
    return (unit @ unit.T).float().numpy().reshape(grid, grid, grid, grid)


def _first_images(workspace: Store, planned: PlannedEvaluation) -> NDArray[np.uint8]:
    """(NUM_EXAMPLES, S, S, 3), fewer where there are fewer."""
    with closing(DatasetReader(workspace, planned.task.test)) as reader:
        span = (0, min(NUM_EXAMPLES, reader.card.num_samples))
        (batch,) = prefetch_spans(reader, planned.model_ref.evaluation_transform, [span])
    return np.ascontiguousarray(batch.images.permute(0, 2, 3, 1).numpy())
