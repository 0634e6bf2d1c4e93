"""What a checkpoint is judged on. A task names its training and test dataset; validation is a part of training."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, field_validator, model_validator

from pipeline.base.config import Config

EvaluatorName = Literal["linear", "knn", "fewshot", "finetune", "classify", "inspect"]


class Task(Config):
    """Training dataset, test dataset, and the share of training samples held out to choose settings on."""

    train: str = Field(description="name of a dataset in the workspace")
    test: str
    validation: float = Field(0.1, gt=0, lt=1, description="share of the training samples, by a hash of their keys")

    @model_validator(mode="after")
    def _no_leak(self) -> Self:
        if self.train == self.test:
            raise ValueError(f"train and test are the same dataset {self.train!r}: scores would mean nothing")
        return self


class LinearSettings(Config):
    """Multinomial logistic regression by L-BFGS on standardised features (SimCLR App. B)."""

    l2: tuple[NonNegativeFloat, ...] = Field(
        tuple(10.0**exponent for exponent in (-6, -5, -4, -3, -2, -1)),
        min_length=1,
        description="chosen from on the validation part",
    )
    max_iterations: int = Field(200, gt=0)


class KnnSettings(Config):
    """Weighted k-NN (DINOv2): cosine similarity, softmax weights."""

    k: tuple[PositiveInt, ...] = Field(
        (10, 20, 100, 200), min_length=1, description="chosen from on the validation part"
    )
    temperature: float = Field(0.07, gt=0)


class FewshotSettings(Config):
    """Closed-form ridge regression on a few images per class (big_vision evaluators/fewshot_lsr.py)."""

    shots: int = Field(10, gt=0)
    l2: float = Field(2.0**10, gt=0)


class FinetuneSettings(Config):
    """Fine-tuning of all weights (ViT Table 4): SGD, momentum 0.9, cosine, clip 1, zero head."""

    steps: int = Field(500, gt=0)
    batch_size: int = Field(512, gt=0)
    learning_rates: tuple[PositiveFloat, ...] = Field(
        (0.003, 0.01, 0.03), min_length=1, description="chosen from on the validation part"
    )
    warmup_steps: int = Field(0, ge=0)


class NoSettings(Config):
    """This evaluator has none."""


SETTINGS: dict[str, type[Config]] = {
    "linear": LinearSettings,
    "knn": KnnSettings,
    "fewshot": FewshotSettings,
    "finetune": FinetuneSettings,
    "classify": NoSettings,
    "inspect": NoSettings,
}


class SuiteEntry(Config):
    """One evaluator on some tasks: for every checkpoint, or for the last one only."""

    evaluator: EvaluatorName
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
    baselines: bool = Field(True, description="the same for raw pixels and for the untrained network")
    max_parallel: int = Field(2, gt=0, description="Ray actors")
    cpus: float = Field(1, gt=0, description="that each actor reserves")
    gpus: float = Field(0, ge=0)
    max_tries: int = Field(2, gt=0, description="of one evaluation, before it counts as failed")

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
