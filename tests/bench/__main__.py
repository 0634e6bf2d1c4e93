"""``make bench``: run every bench, or those that are named, and write their sections of BENCHMARKS.md.

``python -m tests.bench [NAME ...]``. The sections of benches that are not run stay as they are.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import os
import platform
import re
from pathlib import Path

from tests.bench.row import table

_FILE = Path("BENCHMARKS.md")
_NAMES = (
    "attention",
    "augmenting",
    "decoding",
    "extraction",
    "lookup",
    "memory",
    "pause",
    "probes",
    "reading",
    "scheduling",
    "scaling",
    "sharding",
    "shuffling",
    "staging",
    "steptime",
    "streaming",
    "trainer",
    "zero_memory",
)
_ACCURACY = "accuracy"  # written by `make bench-accuracy`
_HEAD = """# Benchmarks

Written by `make bench`. Both sides of a ratio are measured in the same run, in turns; above 1 is better than the peer.
Where a target is set it stands in the last column, and says when it was missed.
"""
_SECTION = """
## {name}

{about}

Measured on {date}: {cores} cores, {machine}, Python {python}.

{table}"""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(_NAMES))
    names = parser.parse_args().names
    unknown = sorted(set(names) - set(_NAMES))
    if unknown:
        parser.error(f"no such bench: {', '.join(unknown)}; there are {', '.join(_NAMES)}")
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy and torch are loaded, here and in what is started
    for name in names or _NAMES:
        module = importlib.import_module(f"tests.bench.{name}")
        measured = module.section() if hasattr(module, "section") else table(module.measure())
        write_section(name, (module.__doc__ or "").strip(), measured)


def write_section(name: str, about: str, measured: str) -> None:
    """Print what was *measured* and put it into the file."""
    text = _SECTION.format(
        name=name,
        about=about,
        date=datetime.date.today().isoformat(),
        cores=os.cpu_count(),
        machine=_processor(),
        python=platform.python_version(),
        table=measured,
    )
    print(text, flush=True)
    sections = (_sections(_FILE.read_text()) if _FILE.exists() else {}) | {name: text}
    _FILE.write_text(_HEAD + "".join(sections[one] for one in sorted(sections)))


def _processor() -> str:
    found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else platform.machine()


def _sections(text: str) -> dict[str, str]:
    """What stands in the file, by the name of the bench."""
    found = {part.partition("\n")[0].strip(): f"\n## {part.rstrip()}\n" for part in text.split("\n## ")[1:]}
    return {name: section for name, section in found.items() if name in (*_NAMES, _ACCURACY)}


if __name__ == "__main__":
    main()
