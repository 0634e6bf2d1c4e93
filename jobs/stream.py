"""``vitpipe stream``: how fast each stage of the stream is and what limits it; the proof of what was handed out."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from jobs.base.console import make_progress, print_result, print_table, print_text
from jobs.base.entrypoint import main, new_app
from jobs.base.options import Debug, Endpoint, Json, Workspace, open_workspace, require_workspace, stores_of
from pipeline.base.errors import FailedError
from pipeline.base.units import format_bytes
from pipeline.stream import benchmark
from pipeline.stream.audit_check import check_audit

_STAGE_COLUMNS = ("stage, one process", "samples/s", "us a sample", "read")
_QUALITY_COLUMNS = (
    "window",
    "distance of neighbours",
    "of samples of a shard",
    "neighbours in one batch",
    "shards of a batch",
    "largest share",
    "shards open",
)

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
    uri, stores, progress = require_workspace(workspace), stores_of(workspace, endpoint), make_progress()
    values = benchmark.bench(uri, stores, name, overrides or [], seconds, world_size, progress)
    print_result(as_json, values, lambda: _print_bench(values))


@app.command()
def audit(
    run: Annotated[str, typer.Argument(help="name of a run that was trained with stream.audit=true")],
    workspace: Workspace = None,
    endpoint: Endpoint = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Prove from the audit log of a run that each sample was seen exactly once per epoch. Exits 1 when it was not."""
    store = open_workspace(workspace, endpoint)
    proof = check_audit(store, run)
    values = {"workspace": store.uri} | asdict(proof) | {"is_exact": proof.is_exact}
    print_result(as_json, values, lambda: _print_audit(values))
    if proof.num_problems:
        raise FailedError(f"{run}: {proof.num_problems} problems; first: {proof.problems[0]}")


def _print_bench(values: dict[str, Any]) -> None:
    """Stages, the loader with all of them, shuffle quality, and what limits the stream."""
    rank = f"one rank of {values['world_size']}, {values['batch_of_a_rank']:,} samples of each batch"
    print_table(f"{values['name']}: {rank}", _STAGE_COLUMNS, _stage_rows(values))
    loaders = [(str(row["workers"]), f"{row['samples_per_second']:,.0f}") for row in values["loader"]]
    print_table(f"The loader as a whole, {values['cores']} cores", ("workers", "samples/s"), loaders)
    title = "Shuffling within an epoch, in parts of what a permutation of all samples does"
    print_table(title, _QUALITY_COLUMNS, map(_quality_row, values["shuffle"]))
    print_text(values["bottleneck"]["told"])


def _stage_rows(values: dict[str, Any]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for stage in values["stages"]:
        speed, cost = stage["samples_per_second"], stage["microseconds_per_sample"]
        read = f"{format_bytes(int(stage['bytes_per_second']))}/s" if stage["bytes_per_second"] else ""
        rows.append((stage["stage"], f"{speed:,.0f}", "" if cost is None else f"{cost:,.1f}", read))
    return rows


def _quality_row(quality: dict[str, Any]) -> tuple[str, ...]:
    return (
        f"{quality['window']:,}{' (chosen)' if quality['is_chosen'] else ''}",
        f"{quality['neighbour_distance']:.3g}",
        f"{quality['shard_distance']:.3g}",
        f"{quality['close_neighbours']:.3g} times",
        f"{quality['shards_of_a_batch']:.0f} (by chance {quality['shards_by_chance']:.0f})",
        f"{quality['largest_share']:.1%}",
        f"{quality['open_shards']:,}",
    )


def _print_audit(values: dict[str, Any]) -> None:
    """The history that the newest weights have seen, and what was proven of it or the first problems."""
    segments = [
        (row["attempt"], f"{row['start']:,}", f"{row['stop']:,}", str(row["world_size"])) for row in values["segments"]
    ]
    print_table(f"{values['run']}: what its newest weights have seen", ("attempt", "from", "to", "ranks"), segments)
    for problem in values["problems"]:
        print_text(problem)
    if not values["is_exact"]:
        print_text(f"{values['num_problems']:,} problems" + (", the first above" if values["problems"] else ""))
        return
    epochs = ", ".join(f"{count} whole epochs of {name}" for name, count in values["whole_epochs"].items())
    print_text(
        f"proven: positions 0 to {values['end']:,} were each handed out once, with the sample that the order names"
    )
    print_text(f"{epochs}, each sample once in each; {values['num_replaced']:,} damaged samples replaced")


if __name__ == "__main__":
    main(app)
