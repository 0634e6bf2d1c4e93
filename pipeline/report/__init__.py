"""Report: one self-contained page that shows what is stored; computes nothing from models.

::

    collect.py    workspace -> Collected: cards, metrics, seconds, joined results, artefacts
    scores.py     evaluation results x checkpoint cards -> Joined -> Score rows, scores.parquet
    artefacts.py  what the inspect evaluator left, with its shapes checked
    tables.py     means over seeds, one table per task, how a cell stands against its baselines
    verdict.py    does the linear probe beat both baselines: the honest sentence
    progressed.py is the last checkpoint better than the one before: answers that come in as values
    paper.py      published values, where the test data are the same
    theme.py      matplotlib figure -> deterministic SVG that follows light and dark
    curves.py     loss, learning rate, images/s, score against step
    pictures.py   patch filters, position similarity, sample images, confusion -> PNG
    page.py       all of it -> HTML, through page.html.j2 and page.css
    summary.py    all of it -> summary.json, which is written last and makes the report exist
    build.py      build_report: the door
"""
