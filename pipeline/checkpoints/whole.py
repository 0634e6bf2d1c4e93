"""Whether a checkpoint is whole, told from its card and a listing: for all who look on, without torch."""

from __future__ import annotations

from pipeline.base.store import Store
from pipeline.records.run import CheckpointCard, step_prefix


def check_whole(workspace: Store, card: CheckpointCard) -> str | None:
    """The first thing that is missing or has another size than the card says; looks at no content."""
    prefix = f"{step_prefix(card.run, card.step)}/"
    sizes = {info.key.removeprefix(prefix): info.num_bytes for info in workspace.list(prefix)}
    for file in card.every_file:
        if file.name not in sizes:
            return f"{file.name} is missing"
        if sizes[file.name] != file.num_bytes:
            return f"{file.name} has {sizes[file.name]} bytes, the card says {file.num_bytes}"
    return None
