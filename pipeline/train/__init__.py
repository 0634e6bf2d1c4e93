"""Training, for pretraining and fine-tuning alike.

::

    recipe.py            optimizer, schedule, precision, ZeRO, batch arithmetic
    loop.py              the one training loop
    lr_schedule.py       learning rate as a pure function of the samples seen
    optimizer.py         parameter groups, learning rates, the state that the optimizer keeps
    torch_engine.py      what an engine is; the one for a single process, plain torch
    engine.py            an engine over DeepSpeed (the only file that imports it), and its ZeRO layouts
    deepspeed_config.py  what DeepSpeed is configured with; memory of a rank, before it is started
    train_state.py       what a rank has of the float32 state: shards, moving average
    distributed.py       process groups; numbers that all ranks agree on; full tensors on the first rank
    device.py            which device computes, pixels to network input, its measured peak
    metrics.py           what is measured at each step: rows of the run's journal, TensorBoard, step times
    diagnostics.py       what goes wrong most often, reported with the likely cause
    rank_log.py          the log of a rank, kept in the workspace
    preemption.py        the request to stop: SIGTERM, or the driver's
    heartbeat.py         what a rank reports to the driver, twice a second
    watchdog.py          the driver's side: finds ranks that hang, ends all for a restart
    ray_executor.py      Ray Train starts the ranks, in a number that fits (the only file here that imports ray)
"""
