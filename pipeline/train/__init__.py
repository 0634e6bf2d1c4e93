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
    watch.py       what is measured at each step: rows of the run's journal; tensorboard.py: the same as event files
    patient.py     storing what can wait, with a store that may refuse it
    pace.py        how a rank's time and memory go; peak.py: how fast it could be
    sanity.py      what goes wrong most often, told with the likely cause
    logs.py        what a rank logged, kept in the workspace
    stopping.py    the wish to stop: SIGTERM, or the driver's
    agree.py       what all ranks agree on at each step, without waiting
    collective.py  object exchange over torch.distributed
    heartbeat.py   the pulse of a rank; supervise.py: the driver, who hears it; verdict.py: who holds up the others
    launch.py      Ray Train starts the ranks, in a number that fits (the only module here that imports ray)
"""
