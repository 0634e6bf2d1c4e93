"""The recipe of a pretraining. Defaults are those of ViT-S/16 on ImageNet-1k (arXiv 2205.01580) where it names them."""

from __future__ import annotations

import re
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from pipeline.base.config import Config, PerAttempt, per_attempt_fields
from pipeline.base.errors import InputError, RecipeError
from pipeline.base.store.open import normalise_uri
from pipeline.images.transforms import EvaluationTransform
from pipeline.models.config import ViTConfig, config_by_name
from pipeline.pretrain.objectives.recipe import ObjectiveRecipe, SoftmaxRecipe
from pipeline.records.run import parse_reference
from pipeline.stream.mixture import whole_weights
from pipeline.stream.recipe import StreamRecipe
from pipeline.train.recipe import EngineRecipe, OptimizerRecipe, ScheduleRecipe

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"


class WorkerResources(Config):
    """What one rank reserves on the cluster, and the threads it computes with."""

    cpus: float = Field(1, gt=0)
    gpus: float = Field(0, ge=0)
    threads: int = Field(1, gt=0, description="OpenMP threads of a rank; more than its cores only costs time")
    peak_flops: float = Field(
        0, ge=0, description="FLOP/s that a rank could reach, which MFU is told against; 0: measured at the start"
    )


class WorkerRange(Config):
    """An elastic number of ranks."""

    min: int = Field(gt=0)
    max: int = Field(gt=0)


class PretrainRecipe(Config):
    """One run: named by its user, resumed when the same recipe is given again.

    ``PerAttempt`` marks what may change between attempts of one run: how the work is spread, logged and saved.
    """

    run: str = Field(pattern=NAME_PATTERN, description="name of the run")
    dataset: str | dict[str, float] = Field(
        description="name of the dataset in the workspace; or a mixture, as a mapping of names to weights"
    )
    seed: int = Field(0, ge=0)
    steps: int = Field(gt=0, description="updates")
    model: ViTConfig = Field(description="num_classes comes from the dataset; 'name: S/16' fills in a named size")
    checkpoint_blocks: PerAttempt[bool] = Field(
        False, description="keep the inputs of blocks alone for the backward pass, which computes the rest again"
    )
    objective: ObjectiveRecipe = Field(
        SoftmaxRecipe(), description="softmax, sigmoid or masked_patches; or a mapping with name"
    )
    stream: StreamRecipe = StreamRecipe()
    transform: EvaluationTransform = EvaluationTransform()
    optimizer: OptimizerRecipe = OptimizerRecipe()
    schedule: ScheduleRecipe = ScheduleRecipe()
    engine: EngineRecipe = EngineRecipe()
    init: str = Field(
        "",
        description="weights of a new run, its head too where the classes are the same: path or URI of a "
        "model.safetensors, or RUN@STEP; '': none, from scratch",
    )
    workers: PerAttempt[int | WorkerRange] = Field(
        2, description="ranks; or {min: 2, max: 8}: as many as fit on the cluster, now and at each restart"
    )
    resources: PerAttempt[WorkerResources] = WorkerResources()
    max_restarts: PerAttempt[int] = Field(3, ge=0, description="of all ranks, when one of them dies")
    grace_seconds: PerAttempt[float] = Field(
        30, gt=0, description="from SIGTERM to SIGKILL, as whoever stops us does it (ray job stop: 3)"
    )
    on_nonfinite: PerAttempt[Literal["stop", "skip"]] = Field(
        "stop", description="when a loss or gradient is not finite: end the run, or leave that update out"
    )
    max_skipped: PerAttempt[int] = Field(
        10, gt=0, description="updates that on_nonfinite: skip may leave out, of an attempt"
    )
    checkpoint_every: PerAttempt[int] = Field(1000, gt=0, description="steps; the last step is always saved")
    keep_last: PerAttempt[int] = Field(
        0, ge=0, description="checkpoints to keep; 0: all. Nothing that is in use is deleted"
    )
    keep_every: PerAttempt[int] = Field(
        0, ge=0, description="steps; checkpoints at multiples of it are kept for ever; 0: none"
    )
    max_failed_saves: PerAttempt[int] = Field(3, gt=0, description="saves in a row that may fail before the run does")
    save_patience_seconds: PerAttempt[float] = Field(
        3600, gt=0, description="that training waits for a checkpoint that is still being written, before the run fails"
    )
    log_every: PerAttempt[int] = Field(10, gt=0, description="steps")

    @field_validator("model", mode="before")
    @classmethod
    def _expand_name(cls, value: Any) -> Any:
        if isinstance(value, dict) and "name" in value:
            changes = {key: setting for key, setting in value.items() if key != "name"}
            return config_by_name(str(value["name"]), **changes)
        return value

    @field_validator("init")
    @classmethod
    def _names_weights(cls, value: str) -> str:
        """A path becomes absolute: ranks, and submitted jobs, are started in other folders."""
        try:
            if value.endswith(".safetensors"):
                return normalise_uri(value)
            if value:
                parse_reference(value)
        except InputError as error:
            raise ValueError(f"{error.message}; write a .safetensors file, or RUN@STEP") from None
        return value

    @field_validator("workers", mode="before")  # before, as below
    @classmethod
    def _can_be_elastic(cls, value: Any) -> Any:
        number = value.model_dump() if isinstance(value, WorkerRange) else value
        counts = [number.get("min"), number.get("max")] if isinstance(number, dict) else [number, number]
        valid = [count for count in counts if isinstance(count, int) and not isinstance(count, bool) and count > 0]
        if len(valid) < len(counts) or (isinstance(number, dict) and len(number) != len(counts)):
            raise ValueError("write a number of ranks, or {min: 2, max: 8}")
        if valid[0] > valid[1]:
            raise ValueError(f"min {valid[0]} is more than max {valid[1]}")
        return value

    @field_validator("dataset", mode="before")  # before, since the errors of two possible types would confuse
    @classmethod
    def _can_be_mixed(cls, value: Any) -> Any:
        names = list(value) if isinstance(value, dict) else [value]
        if not names:
            raise ValueError("name at least one dataset")
        for name in names:
            if not isinstance(name, str) or not re.match(NAME_PATTERN, name):
                raise ValueError(f"{name!r} is no name of a dataset; write a name, or a mapping of names to weights")
        if isinstance(value, dict):
            weights = list(value.values())
            if not all(isinstance(weight, int | float) for weight in weights):
                raise ValueError("write a mixture as a mapping of names to weights")
            try:
                whole_weights(weights)
            except RecipeError as error:
                raise ValueError("; ".join(error.problems)) from None
        return value

    @property
    def dataset_weights(self) -> dict[str, float]:
        """The datasets by name and their weights, in the order in which a mixture counts them."""
        return dict(sorted(self.dataset.items())) if isinstance(self.dataset, dict) else {self.dataset: 1.0}

    @model_validator(mode="after")
    def _agree(self) -> Self:
        sizes = {
            "model.image_size": self.model.image_size,
            "stream.augment.size": self.stream.augment.size,
            "transform.size": self.transform.size,
        }
        if len(set(sizes.values())) > 1:
            raise ValueError("these must be equal: " + ", ".join(f"{name} {size}" for name, size in sizes.items()))
        batch, total = self.stream.batch_size, self.steps * self.stream.batch_size
        if self.schedule.span("warmup", batch) > total:
            steps = self.schedule.warmup_steps
            span = f"warmup_steps {steps}" if steps else f"warmup_samples {self.schedule.warmup_samples}"
            raise ValueError(f"schedule.{span} is more than steps {self.steps}")
        return self

    @property
    def worker_range(self) -> tuple[int, int]:
        """The fewest and the most ranks."""
        if isinstance(self.workers, WorkerRange):
            return self.workers.min, self.workers.max
        return self.workers, self.workers

    def fingerprinted(self, dataset_digest: str) -> dict[str, Any]:
        """What an attempt must share with the first one: all but the fields marked ``PerAttempt``."""
        fixed = self.model_dump(mode="json", exclude=per_attempt_fields(type(self)))
        return fixed | {"dataset_digest": dataset_digest}
