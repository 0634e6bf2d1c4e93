"""EvaluateRecipe: the tasks of a suite, its evaluators with their settings, and how much of the cluster they may use.

``settings_summary`` writes the settings of a recorded evaluation in a few words.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticKnownError

from pipeline.base.config import Config
from pipeline.records.score import EvaluationKey
from pipeline.stream.recipe import AugmentRecipe

TASK_RULES = {"validation", "split", "allow_missing_classes"}  # settings of a key that belong to the task
Layer = int | Literal["head-input", "last"]
Pooling = Literal["model", "cls", "gap", "cls+gap"]
FeatureDtype = Literal["float32", "bfloat16"]
TransformChoice = Literal["protocol", "model"]  # whose transform makes the network's input
SIMCLR_L2 = tuple(10.0 ** (-6 + 11 * step / 44) for step in range(45))  # SimCLR App. B.8: 45 values from 1e-6 to 1e5
_MAX_LISTED = 4  # values of a list that are shown; of a longer one its length and its ends
_MISSING = object()


class Task(Config):
    """Training dataset, test dataset, and the share of training samples held out to choose settings on."""

    train: str = Field(description="name of a dataset in the workspace")
    test: str
    validation: float = Field(0.1, gt=0, lt=1, description="share of the training samples, by a hash of their keys")
    split: Literal["share", "vtab"] = Field(
        "share",
        description="vtab: VTAB-1k (arXiv 1910.04867), 1,000 training samples by a hash of their keys: "
        "800 to fit on, 200 to choose on, all to refit on",
    )
    allow_missing_classes: bool = Field(False, description="vtab: go on where the 800 have no sample of some class")

    @model_validator(mode="after")
    def _no_leak(self) -> Self:
        if self.train == self.test:
            raise ValueError(f"train and test are the same dataset {self.train!r}: scores would mean nothing")
        if self.split == "vtab" and "validation" in self.model_fields_set:
            raise ValueError("split vtab chooses on 200 of its 1,000 samples: leave validation out")
        if self.allow_missing_classes and self.split != "vtab":
            raise ValueError("allow_missing_classes belongs to split: vtab")
        return self

    @property
    def rule(self) -> dict[str, Any]:
        """How the training samples are divided, as part of the settings in an evaluation's key."""
        if self.split == "share":
            return {"validation": self.validation}
        return {"split": self.split, "allow_missing_classes": self.allow_missing_classes}


class EvaluatorSettings(Config):
    """Base of the settings of an evaluator."""

    SHOWN_ALWAYS: ClassVar[tuple[str, ...]] = ()  # what a summary shows even where it is the default


class ProbeSettings(EvaluatorSettings):
    """The features that a probe sees. Of several layers one is chosen on the validation part."""

    layers: tuple[Layer, ...] = Field(
        ("head-input",),
        min_length=1,
        description="head-input: what the head sees; last: after the last norm; blocks: 1 the first, -1 the last",
    )
    pooling: Pooling = Field("model", description="of layers but head-input; model: as the model does it")
    dtype: FeatureDtype = Field("float32", description="bfloat16: autocast in the forward pass")


class LinearSettings(ProbeSettings):
    """Logistic regression by L-BFGS on standardised features (SimCLR App. B)."""

    SHOWN_ALWAYS: ClassVar[tuple[str, ...]] = ("l2",)

    l2: tuple[NonNegativeFloat, ...] = Field(SIMCLR_L2, min_length=1, description="chosen from on the validation part")
    max_iterations: int = Field(200, gt=0, description="of each fit; what did not converge in them is recorded")
    transform: TransformChoice = Field(
        "protocol",
        description="protocol: the short side resized to the crop's, 224 for 224, bicubic; "
        "model: its own, so that features are shared with the other probes",
    )


class SgdSettings(EvaluatorSettings):
    """A sweep of linear heads trained by SGD in one pass (DINOv2): on the last block and on the last *blocks*, each
    without and with the average of the patches, at every learning rate."""

    SHOWN_ALWAYS: ClassVar[tuple[str, ...]] = ("steps", "learning_rates")

    blocks: int = Field(4, gt=0)
    learning_rates: tuple[PositiveFloat, ...] = Field(
        (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1),
        min_length=1,
        description="for 256 samples, scaled to the batch; chosen from on the validation part",
    )
    steps: int = Field(12_500, gt=0, description="DINOv2: 10 epochs of 1,250")
    batch_size: int = Field(1024, gt=0)
    dtype: FeatureDtype = "float32"


class KnnSettings(ProbeSettings):
    """Weighted k-NN (DINOv2): cosine similarity, softmax weights."""

    SHOWN_ALWAYS: ClassVar[tuple[str, ...]] = ("k",)

    k: tuple[PositiveInt, ...] = Field(
        (10, 20, 100, 200), min_length=1, description="chosen from on the validation part"
    )
    temperature: float = Field(0.07, gt=0)


class RidgeSettings(ProbeSettings):
    """Ridge regression on all training samples from sums over a stream: features are never in memory at once."""

    SHOWN_ALWAYS: ClassVar[tuple[str, ...]] = ("l2",)

    l2: tuple[PositiveFloat, ...] = Field(
        tuple(10.0**power for power in range(-1, 7)),
        min_length=1,
        description="against the sum over samples; chosen from on the validation part",
    )


class FewshotSettings(ProbeSettings):
    """Closed-form ridge regression on a few images per class (big_vision evaluators/fewshot_lsr.py)."""

    SHOWN_ALWAYS: ClassVar[tuple[str, ...]] = ("shots", "l2")

    shots: int = Field(10, gt=0, description="per class; big_vision: 1, 5, 10 and 25, the headline 10; ViT's tables: 5")
    l2: float = Field(2.0**10, gt=0, description="configs/common_fewshot.py: 2^10")
    other_l2: tuple[PositiveFloat, ...] = Field(
        (), description="what these would have given is recorded as oracle_top1_l2_*, from the same decomposition"
    )
    transform: TransformChoice = Field(
        "protocol",
        description="protocol: both sides resized to 256 for a crop of 224, or in proportion; "
        "model: its own, so that features are shared with the other probes",
    )

    @model_validator(mode="after")
    def _one_layer(self) -> Self:
        if len(self.layers) > 1:
            raise ValueError("few-shot chooses nothing: name one layer")
        return self


class FinetuneSettings(EvaluatorSettings):
    """Fine-tuning of all weights (ViT Table 4): SGD, momentum 0.9, cosine, clip 1, no weight decay, zero head.

    The paper's steps: ImageNet 20,000; CIFAR 10,000; Pets and Flowers 500; VTAB 2,500.
    """

    SHOWN_ALWAYS: ClassVar[tuple[str, ...]] = ("steps", "learning_rates", "runs")

    steps: int = Field(500, gt=0)
    batch_size: int = Field(512, gt=0)
    micro_batch_size: int = Field(0, ge=0, description="samples of one forward pass; 0: all of a batch")
    learning_rates: tuple[PositiveFloat, ...] = Field(
        (0.003, 0.01, 0.03), min_length=1, description="chosen from on the validation part"
    )
    warmup_steps: int = Field(0, ge=0)
    runs: int = Field(3, gt=0, description="trainings at the chosen rate; mean and deviation are reported (ViT: 3)")
    image_size: int = Field(0, ge=0, description="positions are resampled to it (ViT: 384); 0: as pretrained")
    augment: AugmentRecipe | None = Field(
        None,
        description="its size is the network's; {} is a random crop of 5-100 % and a flip, as ViT's code does it; "
        "none: the evaluation transform, with the images in memory",
    )
    workers: int = Field(0, ge=0, description="loader processes, where there is augmentation")
    optimizer: Literal["sgd", "adamw"] = "sgd"
    weight_decay: float = Field(0.0, ge=0)
    layer_decay: float = Field(1.0, gt=0, le=1, description="learning rate of a block relative to the next one")
    ema: float = Field(0.0, ge=0, lt=1, description="Polyak averaging; ViT's 512 and 518 px rows: 0.9999; 0: none")
    precision: Literal["bf16", "fp32"] = Field("bf16", description="of the forward pass; weights are float32")


class HeadSettings(EvaluatorSettings):
    """The network's own head, for which the dataset has to have its classes."""

    classes: Literal["names", "order"] = Field(
        "names",
        description="names: refused where network and dataset name them otherwise; order: a class is its number, "
        "whatever it is called on either side",
    )


# By evaluator, in the order in which an error lists them.
SETTINGS: dict[str, type[EvaluatorSettings]] = {
    "linear": LinearSettings,
    "sgd": SgdSettings,
    "knn": KnnSettings,
    "ridge": RidgeSettings,
    "fewshot": FewshotSettings,
    "finetune": FinetuneSettings,
    "classify": HeadSettings,
    "inspect": HeadSettings,
}


def _known_evaluator(value: Any) -> Any:
    """An evaluator's name. The error is that of a Literal, but the names are those of the table."""
    if not isinstance(value, str) or value not in SETTINGS:
        *first, last = map(repr, SETTINGS)
        raise PydanticKnownError("literal_error", {"expected": f"{', '.join(first)} or {last}"})
    return value


class SuiteEntry(Config):
    """One evaluator on some tasks: for every checkpoint, or for the last one only."""

    evaluator: Annotated[str, BeforeValidator(_known_evaluator)]
    tasks: tuple[str, ...] = Field(min_length=1)
    checkpoints: Literal["every", "last"] = "every"
    seeds: tuple[int, ...] = Field((0,), min_length=1)
    settings: dict[str, Any] = {}

    @model_validator(mode="after")
    def _settings_fit(self) -> Self:
        self.resolved()
        return self

    def resolved(self) -> dict[str, Any]:
        """The settings with defaults filled in. Raises ValueError for an unknown one."""
        kind = SETTINGS[self.evaluator]
        unknown = sorted(set(self.settings) - set(kind.model_fields))
        if unknown:
            raise ValueError(f"{self.evaluator} has no setting {unknown[0]!r}; it has {sorted(kind.model_fields)}")
        return kind.model_validate(self.settings).model_dump(mode="json")


class EvaluateRecipe(Config):
    """The suite of a run, and how much of the cluster may work on it."""

    tasks: dict[str, Task] = Field(min_length=1)
    suite: tuple[SuiteEntry, ...] = Field(min_length=1)
    baselines: bool = Field(True, description="the same for raw pixels (at most 32 x 32) and for the untrained network")
    max_parallel: int = Field(2, gt=0, description="Ray actors")
    cpus: float = Field(1, gt=0, description="that each actor reserves")
    gpus: float = Field(0, ge=0)
    resources: dict[str, PositiveFloat] = Field(
        {}, description="custom resources that each actor reserves, like {evaluation: 1}: the share beside a training"
    )
    priority: tuple[str, ...] = Field(
        (), description="patterns of names, like 'knn on *': what matches the first goes first; then the newest step"
    )
    max_tries: int = Field(3, gt=0, description="of one evaluation, before it counts as failed")
    patience_seconds: float = Field(600, ge=0, description="how long a store that does not answer is waited for")

    @field_validator("tasks")
    @classmethod
    def _named(cls, tasks: dict[str, Task]) -> dict[str, Task]:
        if not all(tasks):
            raise ValueError("a task needs a name")
        return tasks

    @model_validator(mode="after")
    def _known_tasks(self) -> Self:
        for entry in self.suite:
            for name in entry.tasks:
                if name not in self.tasks:
                    raise ValueError(f"suite names task {name!r}; tasks are {', '.join(sorted(self.tasks))}")
        return self


def settings_summary(key: EvaluationKey) -> str:
    """``shots 10, l2 1024``: the settings that matter most, and those that are not the default.

    With the version of the protocol where it is not the first.
    """
    kind = SETTINGS.get(key.evaluator)
    defaults = kind().model_dump(mode="json") if kind else {}
    defaults |= {name: field.default for name, field in Task.model_fields.items() if not field.is_required()}
    always = kind.SHOWN_ALWAYS if kind else ()
    names = [name for name in always if name in key.settings]
    names += [name for name in key.settings if name not in always and _differs(key.settings, defaults, name)]
    parts = [f"{name} {_short(key.settings[name])}" for name in names]
    return ", ".join([*parts, *([f"protocol {key.protocol_version}"] if key.protocol_version > 1 else [])])


def _differs(settings: dict[str, Any], defaults: dict[str, Any], name: str) -> bool:
    return bool(settings[name] != defaults.get(name, _MISSING))


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {_short(inner)}" for name, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        shown = [_short(element) for element in value]
        return "/".join(shown) if len(shown) <= _MAX_LISTED else f"{len(shown)} from {shown[0]} to {shown[-1]}"
    return f"{value:g}" if isinstance(value, float) else str(value)
