"""Checkpoints: step directories whose card is written last.

::

    attempts.py   numbered attempts of a run; only the newest may commit
    layout.py     the files that a (world, stage) has to have written
    save.py       put every rank's files, compare with what is expected, write the card
    resume.py     the newest checkpoint that is whole, fetched and verified
"""
