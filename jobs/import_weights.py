"""``vitpipe import``: read others' weights as a model.safetensors of ours, to be evaluated and tuned without a run."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from jobs.base.console import print_result, print_text
from jobs.base.entrypoint import main
from jobs.base.options import Debug, Json, bucket_settings
from pipeline.base.errors import InputError


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
    # Imported here: it brings torch along, which --help does without.
    from pipeline.evaluate.interop import ImportHints, import_weights

    if gelu not in (None, "tanh", "exact"):
        raise InputError(f"--gelu {gelu}: there are tanh and exact")
    kind: Literal["tanh", "exact"] | None = None if gelu is None else ("tanh" if gelu == "tanh" else "exact")
    hints = ImportHints(heads=heads, gelu=kind, image_size=image_size)
    result = import_weights(file, out, bucket_settings(file, {"endpoint": endpoint}, {}), hints)

    def show() -> None:
        for note in result["notes"]:
            print_text(f"note: {note}")
        counts = f"{result['num_parameters']:,} weights, {result['num_classes']} classes"
        print_text(f"{result['format']}: {counts}: {result['out']}")

    print_result(as_json, result, show)


if __name__ == "__main__":
    main(import_)
