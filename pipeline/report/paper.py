"""Published values to read beside ours, where the test data are the same."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from pipeline.report.tables import TaskTable

SOURCE = "ViT paper"
# ImageNet-1k by the usual names: imagenet, imagenet-1k, imagenet1k, imagenet2012, ilsvrc2012, also with -val or -test.
# Not imagenet-21k, imagenet-v2, imagenet-a, imagenette, ...
_IMAGENET = re.compile(r"(imagenet|ilsvrc)[-_]?(1k|2012|ilsvrc2012)?([-_](val|validation|test))?", re.IGNORECASE)
# Everybody tests on its 50,000 validation images; a few may be rejected as damaged or double.
_IMAGENET_TEST = range(49_000, 50_001)


@dataclass(frozen=True)
class Published:
    """A top-1 share that a paper reports, by one of our evaluators. ``pretrained_on`` is empty where it is not told."""

    model: str
    pretrained_on: str
    evaluator: str
    value: float
    source: str

    @property
    def name(self) -> str:
        """``ViT-H/14 on JFT-300M``."""
        return f"{self.model} on {self.pretrained_on}" if self.pretrained_on else self.model


# arXiv 2010.11929 (ViT), Tables 2 and 5: fine-tuned at a higher resolution; the linear probe of iGPT-XL as cited there.
IMAGENET = (
    Published("ViT-H/14", "JFT-300M", "finetune", 0.8855, "Table 2"),
    Published("ViT-L/16", "JFT-300M", "finetune", 0.8776, "Table 2"),
    Published("BiT-L", "JFT-300M", "finetune", 0.8754, "Table 2"),
    Published("ViT-L/16", "ImageNet-21k", "finetune", 0.8530, "Table 2"),
    Published("ViT-B/16", "JFT-300M", "finetune", 0.8415, "Table 5"),
    Published("ViT-B/16", "ImageNet-21k", "finetune", 0.8397, "Table 5"),
    Published("ViT-B/16", "ImageNet-1k", "finetune", 0.7791, "Table 5"),
    Published("iGPT-XL", "", "linear", 0.720, "cited"),
)


def published_for(task: str, num_samples: Iterable[int]) -> tuple[Published, ...]:
    """The values for *task* if it is ImageNet-1k: by its name, and by how many test images there were."""
    counts = set(num_samples)
    is_same = _IMAGENET.fullmatch(task) is not None and bool(counts) and all(n in _IMAGENET_TEST for n in counts)
    return IMAGENET if is_same else ()


def published_of(table: TaskTable) -> tuple[Published, ...]:
    """The same for a table of scores."""
    cells = [cell for row in table.headline for cell in (*row.steps.values(), row.untrained, row.imported)]
    return published_for(table.task, (cell.num_samples for cell in cells if cell is not None))
