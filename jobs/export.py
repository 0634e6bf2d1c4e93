"""``vitpipe export``: write a checkpoint's weights for others: Hugging Face transformers, timm, or the official npz."""

from __future__ import annotations

from typing import Annotated

import typer

from jobs.base.console import print_result, print_text
from jobs.base.entrypoint import main
from jobs.base.options import Debug, Endpoint, Json, Workspace, stores_of


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
    # Imported here: it brings torch along, which --help does without.
    from pipeline.evaluate import interop

    stores = stores_of(checkpoint if "://" in checkpoint else workspace, endpoint)
    result = interop.export(checkpoint, form, out, workspace, stores, ema=ema)
    text = f"{result['checkpoint']}: {result['num_parameters']:,} weights: {result['out']}"
    print_result(as_json, result, lambda: print_text(text))


if __name__ == "__main__":
    main(export)
