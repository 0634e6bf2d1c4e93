"""vitpipe: from images in object storage to a pretrained Vision Transformer and a page of results that people believe.

::

     object store / folders / parquet
            |  stage      corpus/      verified, resumable copy of a corpus into the workspace's store
            v
          corpus          corpus/      listing -> checked images; rejects keep their reason
            |  shard      shard/       a fixed plan -> WebDataset tars + index + dataset card (last)
            v
          dataset  ------ plain tars: any webdataset / DALI / tar reader opens them
            |  stream     stream/      card -> exact, elastic, resumable batches for each rank
            v
          pretrain        pretrain/    Ray Train workers, DeepSpeed ZeRO, over train/ and checkpoints/
            |             -> checkpoints (step directories, card last)
            v
          evaluate        evaluate/    what is due for each checkpoint, Ray does the work, a ledger remembers
            |             -> Score rows
            v
          report          report/      one self-contained HTML page + parquet of all scores

Floors, lowest first; a folder imports only what stands below it::

    base < (records, models) < images < (corpus, shard, stream, checkpoints) < train < (pretrain, evaluate) < jobs
    report imports records and base only

Importing this package touches no network, GPU, Ray or process group.
"""

__version__ = "0.1.0"
