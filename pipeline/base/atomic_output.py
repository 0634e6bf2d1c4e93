"""Files and folders that appear complete or not at all, and never replace another."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.base.errors import FailedError, InputError


@contextmanager
def atomic_output(out: str) -> Iterator[Path]:
    """A path beside *out* to write a file or folder to: it is *out* once the block ends, gone when it raises.

    Raises InputError when there is something at *out*, or no folder to hold it; FailedError when the disk refuses.
    """
    target = Path(out).expanduser().absolute()
    _refuse_existing(target)
    scratch = target.parent / f".tmp-{uuid.uuid4().hex}"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield scratch
        _rename(scratch, target)
    except OSError as error:
        raise FailedError(f"{out} cannot be written: {error.strerror or error}") from None
    finally:
        if scratch.is_dir():
            shutil.rmtree(scratch, ignore_errors=True)
        elif scratch.exists():
            scratch.unlink()


def _rename(scratch: Path, target: Path) -> None:
    """Rename, unless there is something at *target* by now: link(2) and rename(2) of a folder refuse to replace it."""
    try:
        if scratch.is_dir():
            os.rename(scratch, target)
        else:
            os.link(scratch, target)
    except FileExistsError:
        _refuse_existing(target)
        raise


def _refuse_existing(target: Path) -> None:
    if os.path.lexists(target):
        raise InputError(f"there is something at {target}", "nothing is replaced: name another --out")
