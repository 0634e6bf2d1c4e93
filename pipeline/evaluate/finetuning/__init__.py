"""Transfer: fine-tuning of the whole network on a task.

::

    network.py   the network with a new head, at another resolution
    subset.py    a part of a dataset's samples as a dataset of its own
    samples.py   the training samples of a task: in memory, or streamed with augmentation
    finetune.py  one training, through the one loop
    keep.py      a long one that is killed goes on where it was
    sweep.py     the evaluator: a learning rate is chosen, then several trainings on all samples
"""
