"""Peers that are measured against, each in an environment of its own below ``.venv-peers``, since they conflict.

``NAME.txt`` beside this file says what is installed for the peer NAME; the bench that needs it makes the environment.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_HERE = Path(__file__).parent
_ENVIRONMENTS = _HERE.parents[2] / ".venv-peers"


def environment(name: str) -> Path:
    """The folder ``bin`` of the environment of the peer *name*, made anew when its requirements have changed."""
    wanted, folder = (_HERE / f"{name}.txt").read_text(), _ENVIRONMENTS / name
    made = folder / "made.txt"
    if not made.exists() or made.read_text() != wanted:
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "-qq", "-r", str(_HERE / f"{name}.txt")]
        subprocess.run(pip, check=True)
        made.write_text(wanted)
    return folder / "bin"
