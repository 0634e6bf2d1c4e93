"""Fine-tuning of a whole network on a task; the evaluator is ``evaluators/finetune.py``.

::

    data.py      the training samples of a task: in memory, or streamed with augmentation
    trainer.py   one training, through the training loop of pretraining; its checkpoints; predictions
"""
