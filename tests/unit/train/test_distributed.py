"""The groups beside training wait as long as a recipe has patience with its store, not gloo's half an hour."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from pipeline.train.distributed import AsyncAllReduce, new_group


@pytest.fixture
def process_group() -> Iterator[None]:
    """A process group of this process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def limit_of(group: dist.ProcessGroup | None) -> timedelta:
    assert group is not None
    found: timedelta = group._get_backend(torch.device("cpu")).options._timeout
    return found


def test_without_ranks_there_is_no_group() -> None:
    assert new_group(10.0) is None


@pytest.mark.parametrize("patience", [0.5, 3600.0, 1e6, 1e300])
@pytest.mark.usefixtures("process_group")
def test_a_group_is_more_patient_than_the_recipe(patience: float) -> None:
    year = timedelta(days=365)
    for group in (new_group(patience), AsyncAllReduce(2, patience)._group):
        assert min(timedelta(seconds=min(patience, 1e8)), year) < limit_of(group) + timedelta(seconds=1)
        assert timedelta(days=1) < limit_of(group) <= year


@pytest.mark.usefixtures("process_group")
def test_a_rank_alone_agrees_in_a_group_too() -> None:
    agreement = AsyncAllReduce(2, 3600.0)
    assert agreement.exchange([1, 2]) is None
    assert agreement.exchange([3, 4]) == [1, 2]
    assert agreement.finish() == [3, 4]
