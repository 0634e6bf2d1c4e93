"""The scheduler: what is due for the checkpoints of a run is done by a pool of workers, and recorded exactly once.

::

    planning.py   checkpoints of a run, or imported weights -> what a suite asks for; what is damaged is left out
    queue.py      what to start next, and what has to be prepared first
    pinning.py    the checkpoints that are still needed are pinned
    loop.py       claims, starts, renews, retries, watches, until nothing is left
    suites.py     what a run was last asked to be judged on, for status and for commands by name
    by_name.py    redo, invalidate and cancel, by patterns of names
"""
