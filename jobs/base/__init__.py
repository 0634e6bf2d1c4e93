"""What commands share: how they start, take options, connect and print.

::

    entrypoint.py          main(command): errors -> one line and an exit code; which code runs
    options.py             options that several commands share, and their results
    console.py             progress, tables, JSON
    recipe.py              the recipe of the chain: one section per stage
    ray_session.py         connect to Ray, or start it for this command
    evaluation_request.py  the command line -> which run or weights, on which suite

No file of this folder imports torch or ray when it is loaded.
"""
