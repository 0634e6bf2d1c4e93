"""``vitpipe transfer``: fine-tune a run's last checkpoint, or imported weights, on one task."""

from __future__ import annotations

from jobs.base.entrypoint import main
from jobs.base.options import Address, Debug, Endpoint, Json, Workspace
from jobs.probe import (
    MaxParallel,
    Name,
    ProbeRequest,
    Run,
    Settings,
    Test,
    Train,
    Weights,
    run_probe,
)


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
    request = ProbeRequest(
        run or "", weights, name, train, test, ("finetune",), settings or (), max_parallel=max_parallel
    )
    run_probe(request, workspace, endpoint, address, as_json, debug)


if __name__ == "__main__":
    main(transfer)
