"""``vitpipe stream``: how fast each stage of the stream is and what limits it; the proof of what was handed out."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from jobs.base.console import make_progress, print_table, print_text
from jobs.base.entrypoint import main, new_app
from jobs.base.options import Debug, Endpoint, Json, Workspace, print_result, require_workspace, stores_of
from pipeline.base.errors import FailedError
from pipeline.base.store.open import open_store
from pipeline.base.store.protocol import Store
from pipeline.base.units import format_bytes
from pipeline.stream.audit_check import check_audit


def run_audit(workspace: Store, run: str) -> dict[str, Any]:
    """What the audit log of *run* proves, as plain values. Raises InputError when there is no such run, or no log."""
    found = check_audit(workspace, run)
    return {"workspace": workspace.uri} | asdict(found) | {"is_exact": found.is_exact}


def print_bench(found: dict[str, Any]) -> None:
    """Stages, the loader as a whole, shuffle quality, and what limits the stream."""
    rank = f"one rank of {found['world_size']}, {found['batch_of_a_rank']:,} samples of each batch"
    print_table(f"{found['name']}: {rank}", ("stage, one process", "samples/s", "us a sample", "read"), _stages(found))
    loaders = [(str(one["workers"]), f"{one['samples_per_second']:,.0f}") for one in found["loader"]]
    print_table(f"The loader as a whole, {found['cores']} cores", ("workers", "samples/s"), loaders)
    title = "Shuffling within an epoch, in parts of what a permutation of all samples does"
    print_table(title, _QUALITIES, [_quality(one) for one in found["shuffle"]])
    print_text(found["bottleneck"]["told"])


def _stages(found: dict[str, Any]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for stage in found["stages"]:
        speed, cost = stage["samples_per_second"], stage["microseconds_per_sample"]
        read = f"{format_bytes(int(stage['bytes_per_second']))}/s" if stage["bytes_per_second"] else ""
        rows.append((stage["stage"], f"{speed:,.0f}", "" if cost is None else f"{cost:,.1f}", read))
    return rows


_QUALITIES = (
    "window",
    "distance of neighbours",
    "of samples of a shard",
    "neighbours in one batch",
    "shards of a batch",
    "largest share",
    "shards open",
)


def _quality(one: dict[str, Any]) -> tuple[str, ...]:
    return (
        f"{one['window']:,}{' (chosen)' if one['is_chosen'] else ''}",
        f"{one['neighbour_distance']:.3g}",
        f"{one['shard_distance']:.3g}",
        f"{one['close_neighbours']:.3g} times",
        f"{one['shards_of_a_batch']:.0f} (by chance {one['shards_by_chance']:.0f})",
        f"{one['largest_share']:.1%}",
        f"{one['open_shards']:,}",
    )


def print_audit(found: dict[str, Any]) -> None:
    """The history that the newest weights have seen, and what was proven of it or the first problems."""
    segments = [
        (one["attempt"], f"{one['start']:,}", f"{one['stop']:,}", str(one["world_size"])) for one in found["segments"]
    ]
    print_table(f"{found['run']}: what its newest weights have seen", ("attempt", "from", "to", "ranks"), segments)
    for problem in found["problems"]:
        print_text(problem)
    if not found["is_exact"]:
        print_text(f"{found['num_problems']:,} problems" + (", the first above" if found["problems"] else ""))
        return
    epochs = ", ".join(f"{count} whole epochs of {name}" for name, count in found["whole_epochs"].items())
    print_text(
        f"proven: positions 0 to {found['end']:,} were each handed out once, with the sample that the order names"
    )
    print_text(f"{epochs}, each sample once in each; {found['num_replaced']:,} damaged samples replaced")


app = new_app(no_args_is_help=True, help="The stream of a dataset into training: bench, audit.")


@app.command()
def bench(
    name: Annotated[str, typer.Argument(help="name of the dataset")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="what pretrain.stream would say, like batch_size=1024 workers=4 augment.size=160"),
    ] = None,
    workspace: Workspace = None,
    seconds: Annotated[float, typer.Option(min=0.01, help="of each measurement; there are three or four")] = 10.0,
    world_size: Annotated[
        int | None, typer.Option(min=1, help="measure one rank of so many; default: of as many as there are partitions")
    ] = None,
    endpoint: Endpoint = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure each stage of the stream on real samples in stream order, then the loader; name the bottleneck.

    Stages are measured in one process; the loader in the rank itself and with *workers* loader processes (default: one
    for each core). Nothing is written to the workspace. How well the order shuffles is told as well.
    """
    from pipeline.stream.benchmark import bench as run_bench

    found = run_bench(
        require_workspace(workspace),
        stores_of(workspace, endpoint),
        name,
        overrides or [],
        seconds,
        world_size,
        make_progress(),
    )
    print_result(as_json, found, lambda: print_bench(found))


@app.command()
def audit(
    run: Annotated[str, typer.Argument(help="name of a run that was trained with stream.audit=true")],
    workspace: Workspace = None,
    endpoint: Endpoint = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Prove from the audit log of a run that each sample was seen exactly once per epoch. Exits 1 when it was not."""

    found = run_audit(open_store(require_workspace(workspace), stores_of(workspace, endpoint)), run)
    print_result(as_json, found, lambda: print_audit(found))
    if found["num_problems"]:
        raise FailedError(f"{run}: {found['num_problems']} problems; first: {found['problems'][0]}")


if __name__ == "__main__":
    main(app)
