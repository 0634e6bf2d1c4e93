"""Commands about weights: out to others' formats, and in from them."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from jobs.console import print_text
from jobs.options import Debug, Endpoint, Json, Workspace, bucket_settings, finish, stores_of
from pipeline.base.errors import InputError


def export(
    checkpoint: Annotated[
        str, typer.Argument(help="RUN@STEP, RUN (its newest), or a path or URI of a model.safetensors")
    ],
    out: Annotated[str, typer.Option(help="folder (hf, timm) or file (npz) to write; nothing may be there")],
    form: Annotated[str, typer.Option("--format", help="hf, timm or npz")] = "hf",
    workspace: Workspace = None,
    ema: Annotated[
        bool, typer.Option("--ema", help="the moving average of the weights, where the run kept one")
    ] = False,
    endpoint: Endpoint = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write the weights of a checkpoint for others; they compute the same function.

    **hf**: a folder for transformers' `from_pretrained`, with the image processor. **timm**: a folder for
    `timm.create_model("local-dir:PATH", pretrained=True)`. **npz**: a file of vision_transformer's naming. What the
    other side does not compute, such as average pooling in transformers, is refused.
    """
    from jobs.export import export as run_export

    where = checkpoint if "://" in checkpoint else workspace
    found = run_export(checkpoint, form, out, workspace, stores_of(where, endpoint), ema=ema)
    finish(
        as_json,
        found,
        lambda: print_text(f"{found['checkpoint']}: {found['num_parameters']:,} weights: {found['out']}"),
    )


def import_(
    file: Annotated[
        str, typer.Argument(help="path or URI of .npz, .safetensors or .bin, or a folder with config.json")
    ],
    out: Annotated[str, typer.Option(help="folder to write model.safetensors to; it may not exist")],
    heads: Annotated[
        int | None, typer.Option(min=1, help="number of heads, where neither shapes nor names tell")
    ] = None,
    gelu: Annotated[
        str | None, typer.Option(help="tanh or exact; default: tanh for npz, else what config.json says")
    ] = None,
    image_size: Annotated[int, typer.Option(min=1, help="of an npz with fixed positions, which do not tell")] = 224,
    endpoint: Annotated[str | None, typer.Option(help="S3 endpoint of the file's bucket")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Read a ViT of vision_transformer, big_vision, timm or transformers. It can be evaluated and tuned without a run.

    The architecture comes from the shapes of tensors and the config.json beside them; what does not fit is named.
    """
    from jobs.import_weights import Told, import_weights

    if gelu not in (None, "tanh", "exact"):
        raise InputError(f"--gelu {gelu}: there are tanh and exact")
    kind: Literal["tanh", "exact"] | None = None if gelu is None else ("tanh" if gelu == "tanh" else "exact")
    told = Told(heads=heads, gelu=kind, image_size=image_size)
    found = import_weights(file, out, bucket_settings(file, {"endpoint": endpoint}, {}), told)

    def show() -> None:
        for note in found["notes"]:
            print_text(f"note: {note}")
        print_text(
            f"{found['format']}: {found['num_parameters']:,} weights, {found['num_classes']} classes: {found['out']}"
        )

    finish(as_json, found, show)
