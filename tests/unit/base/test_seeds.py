"""A draw is named by words; its seed never changes between versions, processes or machines."""

from __future__ import annotations

import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from pipeline.base.seeds import derive, generator


def test_golden_seeds() -> None:
    assert derive(0) == 4761921975702974394
    assert derive(7, "epoch", 3) == 7370620957144609117
    assert derive(7, "epoch", 3, "00ff") == 7491639825074322292


def test_golden_draws() -> None:
    assert generator(7, "epoch", 3).integers(0, 1000, 5).tolist() == [625, 199, 708, 349, 968]
    assert generator(7, "epoch", 3).permutation(8).tolist() == [7, 5, 6, 3, 2, 4, 1, 0]


def test_another_process_draws_the_same() -> None:
    code = "from pipeline.base.seeds import derive; print(derive(7, 'epoch', 3))"
    shown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert int(shown) == derive(7, "epoch", 3)


@given(st.integers(), st.lists(st.integers() | st.text(alphabet="abc01", max_size=4), max_size=4))
def test_a_seed_has_63_bits(seed: int, words: list[int | str]) -> None:
    assert 0 <= derive(seed, *words) < 2**63


def test_words_are_kept_apart() -> None:
    draws = [(1, "ab", "c"), (1, "a", "bc"), (1, "abc"), (11, "abc"), (1, "c", "ab"), (1,), (1, "")]
    assert len({derive(seed, *words) for seed, *words in draws}) == len(draws)  # type: ignore[arg-type]


def test_neighbouring_draws_have_nothing_in_common() -> None:
    seeds = {derive(0, "epoch", epoch, sample) for epoch in range(10) for sample in range(1000)}
    assert len(seeds) == 10_000
    assert abs(sum(seed >> 62 for seed in seeds) - 5_000) < 300
