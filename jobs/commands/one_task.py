"""The commands ``probe`` and ``transfer``: one network on one task."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from jobs.console import make_progress, print_table
from jobs.options import Address, Debug, Endpoint, Json, Workspace, finish, needed, stores_of
from jobs.recipe import ChainRecipe
from pipeline.base.errors import InputError

if TYPE_CHECKING:
    from jobs.one_task import Wish

Run = Annotated[str | None, typer.Argument(help="a run, whose last checkpoint is judged; or imported weights, by name")]
Settings = Annotated[list[str] | None, typer.Argument(help="settings of the evaluator, like l2=[0.1,1] or steps=500")]
Train = Annotated[str, typer.Option(help="training dataset of the task")]
Test = Annotated[str, typer.Option(help="test dataset of the task")]
Weights = Annotated[
    str | None, typer.Option(metavar="PATH|URI", help="instead of a run: a model.safetensors, or an import's folder")
]
Name = Annotated[str | None, typer.Option(help="what --weights are called in scores")]
MaxParallel = Annotated[int, typer.Option(min=1, help="workers")]


def probe(
    train: Train,
    test: Test,
    run: Run = None,
    settings: Settings = None,
    evaluator: Annotated[
        list[str] | None, typer.Option(help="linear, sgd, knn, ridge or fewshot; repeatable; default: three of them")
    ] = None,
    weights: Weights = None,
    name: Name = None,
    max_parallel: MaxParallel = 2,
    workspace: Workspace = None,
    endpoint: Endpoint = None,
    address: Address = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Probe frozen features on one task: linear, k-NN and few-shot, or those that are named.

    `vitpipe probe RUN -w ws --train birds-train --test birds-test`, with a setting
    `vitpipe probe RUN shots=5 --evaluator fewshot ...`. What is recorded already is not computed again.
    """
    from jobs.one_task import PROBES, Wish

    chosen = tuple(evaluator or ("linear", "knn", "fewshot"))
    unknown = [one for one in chosen if one not in PROBES]
    if unknown:
        raise InputError(f"--evaluator {unknown[0]}: there is no such probe", f"there are {', '.join(PROBES)}")
    wish = Wish(run or "", weights, name, train, test, chosen, settings or (), max_parallel=max_parallel)
    _judge(wish, workspace, endpoint, address, as_json, debug)


def transfer(
    train: Train,
    test: Test,
    run: Run = None,
    settings: Settings = None,
    weights: Weights = None,
    name: Name = None,
    max_parallel: MaxParallel = 2,
    workspace: Workspace = None,
    endpoint: Endpoint = None,
    address: Address = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Fine-tune all weights on one task, as ViT's Table 4 does.

    `vitpipe transfer RUN steps=500 image_size=384 -w ws --train birds-train --test birds-test`: the learning rate is
    chosen on a held-out part of the training samples, then three runs on all of them are tested.
    """
    from jobs.one_task import Wish

    wish = Wish(run or "", weights, name, train, test, ("finetune",), settings or (), max_parallel=max_parallel)
    _judge(wish, workspace, endpoint, address, as_json, debug)


def _judge(
    wish: Wish, workspace: str | None, endpoint: str | None, address: str | None, as_json: bool, debug: bool
) -> None:
    from jobs import one_task as job
    from jobs import scores as scores_job
    from jobs import scores_tables as tables

    if wish.weights and "=" in wish.run:  # no run was named, so the first setting stood in its place
        wish = wish._replace(run="", settings=(wish.run, *wish.settings))
    if bool(wish.run) == bool(wish.weights):
        raise InputError("what is to be judged?", "name a run, or --weights, and not both")
    wish.recipe()
    chain = ChainRecipe(workspace=needed(workspace), stores=stores_of(workspace, endpoint))
    found, wanted = job.judge(chain, wish, make_progress(), address, debug)

    def show() -> None:
        for title, rows in tables.printed(found, wanted):
            print_table(title, tables.COLUMNS, rows)

    finish(as_json, {"workspace": chain.workspace} | scores_job.as_json(found, wanted), show)
