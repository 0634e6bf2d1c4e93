"""The one training loop, for pretraining and fine-tuning alike.

::

    recipe.py      optimizer, schedule, precision, ZeRO, batch arithmetic
    schedules.py   learning rate as a pure function of the step
    single.py      an engine for one process, plain torch
    engine.py      an engine over DeepSpeed (the only module that imports it)
    loop.py        the loop
    watch.py       rates and finite losses, logged to the run's journal
    collective.py  object exchange over torch.distributed
    launch.py      Ray Train starts the ranks (the only module here that imports ray)
"""
