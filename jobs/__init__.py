"""What people run: parse, build, call, print, exit code. Rules about data, weights and scores are in ``pipeline/``.

::

    cli.py       the command ``vitpipe``: a table of commands, each loaded when it is run
    __main__.py  the same as ``python -m jobs COMMAND``
    base/        what commands share
    recipes/     the recipes and suites that ship
    others       one file per command: its options, the call, the printing; each also runs as ``python -m jobs.COMMAND``

``run`` calls the work of shard, pretrain, evaluate and report; what it calls takes a recipe and a progress, no options.
"""
