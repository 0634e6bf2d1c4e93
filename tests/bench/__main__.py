"""``make bench``: run every bench, print the table, write BENCHMARKS.md."""

from __future__ import annotations

import datetime
import os
import platform
from pathlib import Path

from tests.bench import attention, reading

_HEAD = """# Benchmarks

Written by `make bench` on {date}: {cores} cores, {machine}, Python {python}. Ratios are of the same
run; above 1 is faster than the peer.

| what | ours | peer | ratio |
|---|---|---|---|
"""


def main() -> None:
    rows = [*attention.measure(), *reading.measure()]
    text = _HEAD.format(
        date=datetime.date.today().isoformat(),
        cores=os.cpu_count(),
        machine=platform.machine(),
        python=platform.python_version(),
    )
    text += "".join(f"| {row.what} | {row.ours} | {row.peer} | {row.ratio:.2f} |\n" for row in rows)
    Path("BENCHMARKS.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
