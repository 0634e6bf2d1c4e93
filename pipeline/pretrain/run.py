"""run.json: made at the first attempt, create-only; another recipe under the same name is refused by field."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pipeline.base.digests import differing_fields, fingerprint
from pipeline.base.errors import InputError, MismatchError, RecipeError
from pipeline.base.store import Store
from pipeline.base.world import allowed_world_sizes
from pipeline.models.config import ViTConfig
from pipeline.pretrain.data import TrainingData
from pipeline.pretrain.lineage import check_fork
from pipeline.pretrain.recipe import PretrainRecipe
from pipeline.records.imported import imported_card_key
from pipeline.records.run import OrderParameters, RunCard, extended, read_run_card, run_prefix
from pipeline.stream.order import check_world
from pipeline.train.engine_config import check_engine
from pipeline.train.recipe import accumulation


def architecture(recipe: PretrainRecipe, data: TrainingData) -> ViTConfig:
    """The network for the classes of the dataset. Raises RecipeError when the recipe states another number."""
    found, stated = len(data.class_names), recipe.model.num_classes
    if recipe.objective.labels == "none":
        if stated:
            raise RecipeError(
                [f"model.num_classes is {stated}, but {recipe.objective.name} trains no head; leave it out"]
            )
        return recipe.model
    if not found:
        raise InputError(f"dataset {data.name} has no labels", f"the {recipe.objective.name} objective needs them")
    if stated not in (0, found):
        raise RecipeError([f"model.num_classes is {stated}, but dataset {data.name} has {found}; leave it out"])
    return recipe.model.model_copy(update={"num_classes": found})


def check_recipe(recipe: PretrainRecipe, data: TrainingData) -> None:
    """Everything that can be known before a rank starts. Raises RecipeError with all that is wrong."""
    checks: list[Callable[[], object]] = [
        lambda: architecture(recipe, data),
        lambda: world_sizes(recipe),
        lambda: check_engine(recipe.engine),
        lambda: _check_precision(recipe),
    ]
    problems: list[str] = []
    for check in checks:
        try:
            check()
        except RecipeError as error:
            problems += error.problems
    if problems:
        raise RecipeError(problems)
    if data.num_samples < world_sizes(recipe)[0]:
        raise InputError(f"dataset {data.name} has {data.num_samples} samples for {world_sizes(recipe)[0]} ranks")


def world_sizes(recipe: PretrainRecipe) -> Sequence[int]:
    """The numbers of ranks that may train *recipe*, the largest first. Raises RecipeError when there is none."""
    least, most = recipe.worker_range
    stream = recipe.stream
    if least == most:
        _check_size(recipe, most)
        return [most]
    sizes = [size for size in allowed_world_sizes(stream.partitions) if least <= size <= most]
    if not sizes:
        works = ", ".join(map(str, allowed_world_sizes(stream.partitions)))
        raise RecipeError(
            [f"no number of workers from {least} to {most} divides stream.partitions {stream.partitions}; {works} do"]
        )
    for size in sizes:
        _check_size(recipe, size)
    return sizes[::-1]


def _check_size(recipe: PretrainRecipe, size: int) -> None:
    check_world(size, recipe.stream.partitions, recipe.stream.batch_size)
    accumulation(recipe.stream.batch_size, size, recipe.engine.micro_batch_size)


def _check_precision(recipe: PretrainRecipe) -> None:
    if recipe.on_nonfinite == "skip" and recipe.engine.zero_stage == 0:
        raise RecipeError(
            [
                "on_nonfinite: skip needs engine.zero_stage 1, 2 or 3, since without ZeRO every update is applied; "
                "set one, or on_nonfinite: stop"
            ]
        )


def open_run(
    workspace: Store,
    recipe: PretrainRecipe,
    data: TrainingData,
    code_version: str,
    parent: str | None = None,
    init_sha256: str = "",
) -> RunCard:
    """The card of the run, made if there is none. *parent*: RUN@STEP that it is forked from. *init_sha256*: of init.

    Raises MismatchError naming the differing fields, InputError for a new run with the name of imported weights, and
    what ``check_fork`` raises.
    """
    stream = recipe.stream
    made_of = recipe.fingerprinted(data.digest)
    key = f"{run_prefix(recipe.run)}/run.json"
    if workspace.head(key) is None:
        if workspace.head(imported_card_key(recipe.run)) is not None:
            raise InputError(
                f"{recipe.run!r} is the name of imported weights in {workspace.uri}", "name the run with --run"
            )
        if parent is not None:
            check_fork(workspace, recipe, data.digest, parent)
        run = RunCard(
            name=recipe.run,
            fingerprint=fingerprint(made_of),
            fingerprinted=made_of,
            recipe=recipe.model_dump(mode="json"),
            dataset_name=data.name,
            dataset_digest=data.digest,
            order=OrderParameters(
                seed=recipe.seed, partitions=stream.partitions, window=stream.window, batch_size=stream.batch_size
            ),
            code_version=code_version,
            parent=parent,
            init_sha256=init_sha256,
        )
        if workspace.put_if_absent(key, run.to_json()):
            return run
    theirs = read_run_card(workspace, recipe.run)
    _check_same(workspace, recipe, data.digest, theirs, parent)
    return theirs


def _check_same(workspace: Store, recipe: PretrainRecipe, digest: str, theirs: RunCard, parent: str | None) -> None:
    steps = int(theirs.recipe["steps"])
    if recipe.steps == extended(workspace, theirs):
        recipe = recipe.model_copy(update={"steps": steps})  # the recipe of an extended run may say its new length
    made_of = recipe.fingerprinted(digest)
    fields = differing_fields(made_of, theirs.fingerprinted) if fingerprint(made_of) != theirs.fingerprint else []
    if parent is not None and parent != theirs.parent:
        fields.append(f"forked from: {theirs.parent or 'nothing'} -> {parent}")
    if fields:
        raise MismatchError(
            f"run {recipe.run!r} exists with another recipe: {'; '.join(fields)}",
            "name another run, or undo the change",
        )
