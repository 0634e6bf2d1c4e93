"""The hand-offs between stages: frozen records, most with a schema_version, and the keys they are stored under.

::

    record.py      Record, parse_record, read_record
    corpus.py      listing schema, Reject, ClassEntry, Corpus, CorpusReader
    dataset.py     dataset card, shard entry, index schema, tar member header, keys
    run.py         run card, checkpoint card, metrics row, keys
    imported.py    card of imported weights
    evaluators.py  EVALUATORS: name, title, protocol version, headline metrics
    ledger.py      claims, renewals, failures, invalidations as stored; keys
    score.py       evaluation key, result, Score, ResultFilter
"""
