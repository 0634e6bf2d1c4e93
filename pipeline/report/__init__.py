"""Report: one self-contained page that shows what is stored; computes nothing from models.

::

    collect.py     workspace -> RunData: cards, metrics, seconds, scored results, pictures of the model as arrays
    scores.py      evaluation results x checkpoint cards -> ScoredResult -> Score rows, scores.parquet
    query.py       scores by run, task, evaluator, metric, step; as JSON, parquet or CSV
    tables.py      means over seeds, one table per task, cells against their baselines, published values
    verdicts.py    does the linear probe beat both baselines; is the last checkpoint better than the one before
    formatting.py  numbers and names as text
    theme.py       matplotlib figure -> deterministic SVG that follows light and dark
    curves.py      loss, learning rate, images/s, score against step -> SVG
    pictures.py    patch filters, position similarity, sample images, confusion -> PNG
    page.py        all of it -> HTML, through page.html.j2 and page.css
    stage.py       build_report: collect, render, put; summary.json last, which makes the report exist
"""
