"""``vitpipe probe`` as a module, for ``ray job submit``; what it does stands in ``jobs/one_task.py``."""

from __future__ import annotations

from jobs.cli import main

if __name__ == "__main__":
    main(["probe"])
