"""Which of two processes runs which tests."""

from __future__ import annotations

from xdist.scheduler import LoadScopeScheduling

_CLUSTERS = (
    "tests/golden/",
    "tests/end_to_end/",
    "tests/faults/test_evaluate",
    "tests/faults/test_pretrain_cluster",
    "tests/faults/test_pretrain_ray",
    "tests/faults/test_shard",
    "tests/ray/",
)


def starts_cluster(nodeid: str) -> bool:
    """True where a Ray cluster may be started.

    Two clusters on one machine give their workers ports of the same range, and wait for each other's: so these tests
    all go to one process.
    """
    return nodeid.startswith(_CLUSTERS)


class Sharing(LoadScopeScheduling):  # type: ignore[misc]
    """All that start a cluster in one process, the others file by file; in the order in which they were collected.

    xdist's own groups (``--dist loadgroup``, 3.8) have no effect with pytest 9.
    """

    def _split_scope(self, nodeid: str) -> str:
        return "clusters" if starts_cluster(nodeid) else nodeid.partition("::")[0]
