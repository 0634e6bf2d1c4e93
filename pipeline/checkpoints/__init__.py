"""Checkpoints: step directories whose card is written last. Pickle-free, and free of world size and ZeRO stage.

::

    fragments.py   what a checkpoint is made of: pieces of the flattened float32 state of named parameters
    attempts.py    numbered attempts of a run; only the newest may commit
    layout.py      the names of files, and how fragments have to cover the state
    rankfile.py    fragments <-> the bytes of one safetensors file
    snapshot.py    a copy of a rank's fragments, in a buffer that is used again
    whole.py       whether all that a card names is there
    save.py        put a rank's file; compare what the ranks wrote with what they must have; the card, last
    writer.py      all of that in the background, while training goes on; failures are alarms
    stored.py      a checkpoint in a store as a FragmentReader, every byte verified
    agree.py       what one rank meets, all are told
    resume.py      the newest checkpoint that is whole, else the fork's parent
    damaged.py     what is found damaged is set aside, with evidence
    warm.py        weights to start from: a file, or RUN@STEP
    retention.py   which steps are deleted, and how, without hurting anybody who reads
    pins.py        steps that somebody needs
    sweep.py       what no card names and nobody will ever read

One step in the store::

    runs/<run>/checkpoints/step-00000100/0001/rank-00000.safetensors ...   what attempt 1's ranks wrote
                                         0001/model.safetensors            whole weights (ema.safetensors beside it)
                                         checkpoint.json                   the card, last, create-only
                                         damaged-0002.json                 a card that attempt 2 found damaged, and why
                                         retired.json                      the card of a step that retention removed

How a training uses it; every rank makes the same calls in the same order::

    saving = Saving(workspace, run, attempt, zero_stage, dtype, fingerprint, dataset_digest, code_version, parent)
    card = resume(saving, collective, engine)        # loads the engine: own newest whole one, else parent RUN@STEP
    first_step, position = (card.step, card.position) if card else (0, 0)
    writer = CheckpointWriter(
        saving,
        background,                  # a Collective over a group of its own: dist.new_group(backend="gloo")
        assemble,                    # (FragmentSource, kind) -> {name: whole tensor} on rank 0, None elsewhere;
                                     #   is given a snapshot, on every rank, in the writer's thread: so use that
                                     #   group, and ``source.fragments()`` / ``source.shapes()``, never the live engine
        pack,                        # {name: whole tensor} -> bytes of model.safetensors; rank 0 alone
        retention=Retention(keep_last=recipe.keep_last, keep_every=recipe.keep_every),
        max_failed_saves=recipe.max_failed_saves,
        patience_seconds=recipe.save_patience_seconds,
        say=say,                     # hears at once that training waits for the store; without it that is an alarm
    )
    if card is None or card.run != run:              # a new run, or a fork: its first checkpoint
        writer.save(first_step, position, engine)
    ...
    paused_seconds = writer.save(step, position, engine)   # when due; raises what ended the background for good
    for message in writer.take_alarms(): ...               # any time; rank 0 has them all
    writer.check()                                         # any time: raises what ended the background for good
    writer.save_and_wait(steps, position, engine)          # the last one, and before exit code 3: committed, or raises
    writer.close()                                         # on the good way out

A rank that raises needs no close: the background is a daemon thread. ``save`` and ``save_and_wait`` are called
by every rank at the same step (``take_alarms`` and ``check`` are of this process alone).

``save`` and ``wait`` raise FailedError after ``max_failed_saves`` in a row, and when training has waited for the store
for ``patience_seconds``; SupersededError once a newer attempt exists; all on every rank. ``writer.write_seconds`` is
how long the last write took in the background.
"""
