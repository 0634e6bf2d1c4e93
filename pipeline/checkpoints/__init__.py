"""Checkpoints: step directories whose card is written last. Pickle-free, and free of world size and ZeRO stage.

::

    state.py        Fragment, FragmentSource, FragmentReader; Snapshot: a copy of a rank's state, in a reused buffer
    shard_file.py   a rank's safetensors file, and how the files of all ranks cover the state
    card.py         attempts of a run (only the newest may commit); complete or not, readable or not; quarantine
    save.py         put a rank's file; compare what the ranks wrote with what they must have; the card, last
    writer.py       CheckpointWriter: all of that in the background, while training goes on; failures are alarms
    reader.py       CheckpointReader: a checkpoint in a store as a FragmentReader, every byte verified
    resume.py       the newest complete checkpoint, else the fork's parent
    warm_start.py   weights to start from: a file, or RUN@STEP
    retention.py    leases on steps, which steps are removed, and files that no card lists

One step in the store::

    runs/<run>/checkpoints/step-00000100/0001/rank-00000.safetensors ...   what attempt 1's ranks wrote
                                         0001/model.safetensors            full weights (ema.safetensors beside it)
                                         checkpoint.json                   the card, last, create-only
                                         damaged-0002.json                 a card that attempt 2 found damaged, and why
                                         retired.json                      the card of a step that retention removed

How a training uses it; every rank makes the same calls in the same order::

    saving = SaveContext(workspace, run, attempt, zero_stage, dtype, fingerprint, dataset_digest, code_version, parent)
    card = resume(saving, collective, engine)        # loads the engine: own newest complete one, else parent RUN@STEP
    first_step, position = (card.step, card.position) if card else (0, 0)
    writer = CheckpointWriter(
        saving,
        background,                  # a Collective over a group of its own: dist.new_group(backend="gloo")
        assemble,                    # (FragmentSource, kind) -> {name: full tensor} on rank 0, None elsewhere;
                                     #   is given a snapshot, on every rank, in the writer's thread: so use that
                                     #   group, and ``source.fragments()`` / ``source.shapes()``, never the live engine
        pack,                        # {name: full tensor} -> bytes of model.safetensors; rank 0 alone
        retention=Retention(keep_last=recipe.keep_last, keep_every=recipe.keep_every),
        max_failed_saves=recipe.max_failed_saves,
        patience_seconds=recipe.save_patience_seconds,
        on_message=on_message,       # is called at once when training waits for the store; None: that is an alarm
    )
    if card is None or card.run != run:              # a new run, or a fork: its first checkpoint
        writer.save(first_step, position, engine)
    ...
    paused_seconds = writer.save(step, position, engine)   # when due; raises what ended the background for good
    for message in writer.take_alarms(): ...               # any time; rank 0 has them all
    writer.check()                                         # any time: raises what ended the background for good
    writer.save_and_wait(steps, position, engine)          # the last one, and before exit code 3: committed, or raises
    writer.close()                                         # when all went well

A rank that raises needs no close: the background is a daemon thread. ``save`` and ``save_and_wait`` are called
by every rank at the same step (``take_alarms`` and ``check`` are of this process alone).

``save`` and ``wait`` raise FailedError after ``max_failed_saves`` in a row, and when training has waited for the store
for ``patience_seconds``; SupersededError once a newer attempt exists; all on every rank. ``writer.write_seconds`` is
how long the last write took in the background.
"""
