"""``vitpipe doctor``: is this machine, or this workspace, fit for the work?"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from importlib import metadata

from jobs.base.console import print_result, print_table
from jobs.base.entrypoint import main
from jobs.base.options import Debug, Endpoint, Json, Workspace, stores_of
from pipeline import __version__
from pipeline.base.errors import RecipeError, VitpipeError
from pipeline.base.store.open import open_store
from pipeline.base.store.protocol import Stores
from pipeline.base.units import format_bytes

# Oldest versions that are safe: they fix bugs of torch.load and Pillow, and have token authentication in Ray.
_OLDEST = {"torch": (2, 10), "pillow": (12, 3), "ray": (2, 60), "deepspeed": (0, 19), "webdataset": (1, 0)}
_MIN_FREE_BYTES = 2_000_000_000  # of memory, and of disk for temporary files
Check = tuple[str, bool, str]  # label, whether it is fine, detail


def doctor(workspace: Workspace = None, endpoint: Endpoint = None, as_json: Json = False, debug: Debug = False) -> None:
    """Check this machine, and with --workspace whether it can be written."""
    checks = run_doctor(workspace, stores_of(workspace, endpoint))
    result = {"checks": [{"what": label, "fine": fine, "detail": detail} for label, fine, detail in checks]}
    rows = [(label, "ok" if fine else "PROBLEM", detail) for label, fine, detail in checks]
    print_result(as_json, result, lambda: print_table(f"vitpipe {__version__}", ("check", "", "found"), rows))
    bad = [label for label, fine, _ in checks if not fine]
    if bad:
        raise RecipeError([f"not fit: {', '.join(bad)}"], "doctor")


def run_doctor(workspace: str | None, stores: Stores) -> list[Check]:
    """Every check with its result; none of them starts anything."""
    checks = [_python(), *(_package(name, oldest) for name, oldest in _OLDEST.items())]
    checks += [_memory(), _disk(), _threads()]
    if workspace:
        checks.append(_check_workspace(workspace, stores))
    return checks


def _python() -> Check:
    return "python", sys.version_info >= (3, 11), sys.version.split()[0]


def _package(name: str, oldest: tuple[int, int]) -> Check:
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return name, False, "not installed"
    digits = version.split("+")[0].split(".")
    fine = tuple(int(part) for part in digits[:2]) >= oldest
    return name, fine, version + ("" if fine else f", needs {oldest[0]}.{oldest[1]}")


def _memory() -> Check:
    num_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    return "free memory", num_bytes > _MIN_FREE_BYTES, format_bytes(num_bytes)


def _disk() -> Check:
    free = shutil.disk_usage(tempfile.gettempdir()).free
    return "free disk for temporary files", free > _MIN_FREE_BYTES, f"{format_bytes(free)} in {tempfile.gettempdir()}"


def _threads() -> Check:
    return "cores", True, str(os.cpu_count())


def _check_workspace(uri: str, stores: Stores) -> Check:
    try:
        store = open_store(uri, stores)
        store.check_writable()
    except VitpipeError as error:
        return "workspace", False, str(error)
    return "workspace", True, f"{store.uri} can be written"


if __name__ == "__main__":
    main(doctor)
