"""The one door to ray: Ray Data runs a task over rows.

The rows are small: what a task works on, and what comes of it, travels through the store.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import ray.data

from pipeline.corpus.scan import RunTasks
from pipeline.corpus.worker import Row


def on_cluster(num_cpus: float = 1) -> RunTasks:
    """Run tasks on the cluster that ray is connected to; each takes *num_cpus*."""

    def run(task: Callable[[Row], Row], rows: list[Row]) -> Iterator[Row]:
        logging.getLogger("ray.data").setLevel(logging.WARNING)  # it logs every dataset's plan and end
        logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # our own progress is shown instead
        context = ray.data.DataContext.get_current()
        context.print_on_execution_start = False
        context.execution_options.preserve_order = False
        dataset = ray.data.from_items(rows, override_num_blocks=len(rows))
        # Not iter_rows: a thread of it fetches ahead, and if it calls Ray after the shutdown, the process just ends.
        results = dataset.map(task, num_cpus=num_cpus).iter_batches(
            batch_size=None, batch_format="pyarrow", prefetch_batches=0
        )
        for table in results:
            yield from table.to_pylist()

    return run
