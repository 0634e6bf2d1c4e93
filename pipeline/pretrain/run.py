"""run.json: made at the first attempt, create-only; another recipe under the same name is refused by field."""

from __future__ import annotations

from pipeline.base.digests import differing_fields, fingerprint
from pipeline.base.errors import InputError, MismatchError, RecipeError
from pipeline.base.store import Store
from pipeline.models.config import ViTConfig
from pipeline.pretrain.data import TrainingData
from pipeline.pretrain.recipe import PretrainRecipe
from pipeline.records.run import OrderParameters, RunCard, read_run_card, run_prefix
from pipeline.stream.order import check_world
from pipeline.train.recipe import accumulation


def architecture(recipe: PretrainRecipe, data: TrainingData) -> ViTConfig:
    """The network for the classes of the dataset. Raises RecipeError when the recipe states another number."""
    found, stated = len(data.class_names), recipe.model.num_classes
    if not found:
        raise InputError(f"dataset {data.name} has no labels", "the softmax objective needs one label per image")
    if stated not in (0, found):
        raise RecipeError([f"model.num_classes is {stated}, but dataset {data.name} has {found}; leave it out"])
    return recipe.model.model_copy(update={"num_classes": found})


def check_recipe(recipe: PretrainRecipe, data: TrainingData) -> None:
    """Everything that can be known before a rank starts."""
    architecture(recipe, data)
    check_world(recipe.workers, recipe.stream.partitions, recipe.stream.batch_size)
    accumulation(recipe.stream.batch_size, recipe.workers, recipe.engine.micro_batch_size)
    if recipe.engine.precision == "bf16" and recipe.engine.zero_stage == 0:
        raise RecipeError(["engine: bf16 needs zero_stage 1, 2 or 3, which keep float32 masters"])


def open_run(workspace: Store, recipe: PretrainRecipe, data: TrainingData, code_version: str) -> RunCard:
    """The card of the run, made if there is none. Raises MismatchError naming the differing fields."""
    made_of = recipe.fingerprinted(data.digest)
    stream = recipe.stream
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
    )
    if workspace.put_if_absent(f"{run_prefix(recipe.run)}/run.json", run.to_json()):
        return run
    theirs = read_run_card(workspace, recipe.run)
    if theirs.fingerprint != run.fingerprint:
        fields = differing_fields(made_of, theirs.fingerprinted)
        raise MismatchError(
            f"run {recipe.run!r} exists with another recipe: {'; '.join(fields)}",
            "name another run, or undo the change",
        )
    return theirs
