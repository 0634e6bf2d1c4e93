"""The one training loop, for pretraining and fine-tuning alike.

::

    recipe.py      optimizer, schedule, precision, ZeRO, batch arithmetic
    schedules.py   learning rate as a pure function of the samples seen
    groups.py      which parameters share weight decay and learning rate
    single.py      an engine for one process, plain torch
    engine.py      an engine over DeepSpeed (the only module that imports it)
    engine_config  what DeepSpeed is told; engine_layout: where it keeps this rank's float32 state
    pieces.py      pieces of that state, whatever the engine; holding.py: all of a rank; ema.py: moving average
    assemble.py    whole tensors on the first rank, from the pieces of all
    memory.py      what the state of a rank takes, before it is started
    loop.py        the loop
    watch.py       rates and finite losses, logged to the run's journal
    collective.py  object exchange over torch.distributed
    launch.py      Ray Train starts the ranks (the only module here that imports ray)
"""
