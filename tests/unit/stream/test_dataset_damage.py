"""Cuts and flips of a small dataset's files: each is harmless or reported, never silent; read through DatasetReader.

What each check promises is asserted exactly. ``digest``: a flip costs the sample whose header or bytes it is in, and no
other. ``header``: the same for headers; one inside an image gives the image with that one byte changed, which is what
the level leaves out. Labels and keys come from the index, so members of labels, padding and the end of the archive may
be damaged without any harm.
"""

from __future__ import annotations

import os
import pickle
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.base.errors import DamageError
from pipeline.base.store import open_store
from pipeline.stream.dataset import Check, DatasetReader, Sample, SampleDamagedError
from tests.support.datasets import make_dataset
from tests.support.far import FarStore, cached_shards

SEED = 20240607
ROWS = 6
CHECKS: tuple[Check, ...] = ("digest", "header")


@dataclass
class Small:
    """A dataset of one shard: where it is, what it holds, and where each sample's header and bytes are."""

    root: Path
    samples: list[Sample]
    headers: list[range]
    images: list[range]

    @property
    def tar(self) -> Path:
        return self.root / "datasets/small/shard-000000.tar"

    def reader(self, check: Check = "digest") -> DatasetReader:
        return DatasetReader(open_store(str(self.root)), "small", check=check)

    def hit(self, at: int) -> tuple[set[int], set[int]]:
        """The rows whose header, and whose bytes, byte *at* is in."""
        return (
            {row for row in range(ROWS) if at in self.headers[row]},
            {row for row in range(ROWS) if at in self.images[row]},
        )


@pytest.fixture
def small(tmp_path: Path) -> Small:
    """A dataset of its own."""
    store = open_store(str(tmp_path / "workspace"))
    make_dataset(store, "small", num_samples=ROWS, size=6, max_samples=ROWS)
    reader = DatasetReader(store, "small")
    samples = [reader.read(0, row) for row in range(ROWS)]
    offsets = [reader.damaged(0, row, "").offset for row in range(ROWS)]
    headers = [range(offset - 512, offset) for offset in offsets]
    images = [range(offset, offset + len(sample.data)) for offset, sample in zip(offsets, samples, strict=True)]
    return Small(tmp_path / "workspace", samples, headers, images)


def outcomes(reader: DatasetReader) -> list[Sample | None]:
    """Each sample as it is read, None for one that is reported as damaged."""
    return [None if isinstance(item, SampleDamagedError) else item for item in _each(reader)]


def _each(reader: DatasetReader) -> Iterator[Sample | SampleDamagedError]:
    return reader.read_many((0, row) for row in range(ROWS))


def flip(file: int, at: int, bit: int) -> None:
    """Turn one bit of an open file."""
    (byte,) = os.pread(file, 1, at)
    os.pwrite(file, bytes([byte ^ 1 << bit]), at)


def positions(small: Small, rng: random.Random) -> list[int]:
    """All bytes of all tar headers, those of labels included, and a seeded sample of the rest."""
    size = small.tar.stat().st_size
    with small.tar.open("rb") as file:
        blocks = [file.read(512) for _ in range(size // 512)]
    headers = [at for number, block in enumerate(blocks) if block[257:262] == b"ustar" for at in _bytes_of(number)]
    assert len(headers) == 2 * ROWS * 512
    return headers + rng.sample(sorted(set(range(size)) - set(headers)), 1500)


def _bytes_of(block: int) -> range:
    return range(block * 512, (block + 1) * 512)


@pytest.mark.parametrize("check", CHECKS)
def test_every_flip_of_a_shard(small: Small, check: Check) -> None:
    rng = random.Random(SEED)
    reader, seen = small.reader(check), set()
    file = os.open(small.tar, os.O_RDWR)
    for at in positions(small, rng):
        bit = rng.randrange(8)
        flip(file, at, bit)
        found = outcomes(reader)
        flip(file, at, bit)
        in_header, in_image = small.hit(at)
        reported = in_header | (in_image if check == "digest" else set())
        for row, (sample, wanted) in enumerate(zip(found, small.samples, strict=True)):
            if row in reported:
                assert sample is None, f"seed {SEED}: silent: bit {bit} of byte {at}, row {row}"
            elif row in in_image:
                assert sample is not None
                place = at - small.images[row].start
                changed = bytearray(wanted.data)
                changed[place] ^= 1 << bit
                assert sample == wanted._replace(data=bytes(changed))
            else:
                assert sample == wanted, f"seed {SEED}: bit {bit} of byte {at}, row {row}"
        seen.add((bool(in_header), bool(in_image)))
    os.close(file)
    assert seen == {(True, False), (False, True), (False, False)}
    assert outcomes(reader) == small.samples


@pytest.mark.parametrize("check", CHECKS)
def test_every_cut_of_a_shard(small: Small, check: Check) -> None:
    reader = small.reader(check)
    for size in reversed(range(small.tar.stat().st_size)):
        os.truncate(small.tar, size)
        wanted = [
            sample if image.stop <= size else None for sample, image in zip(small.samples, small.images, strict=True)
        ]
        assert outcomes(reader) == wanted, f"cut to {size}"


def test_cuts_and_flips_of_an_index(small: Small) -> None:
    rng = random.Random(SEED)
    path = small.tar.with_suffix(".parquet")
    fresh, good = pickle.dumps(small.reader()), path.read_bytes()
    assert outcomes(pickle.loads(fresh)) == small.samples
    for at in rng.sample(range(len(good)), 1000):
        changed = bytearray(good)
        changed[at] ^= 1 << rng.randrange(8)
        for bad in (bytes(changed), good[:at]):
            path.write_bytes(bad)
            assert outcomes(pickle.loads(fresh)) == [None] * ROWS, f"seed {SEED}: byte {at}"


def test_cuts_and_flips_of_the_table_of_shards(small: Small) -> None:
    rng = random.Random(SEED)
    path = small.tar.with_name("shards.parquet")
    good = path.read_bytes()
    for at in rng.sample(range(len(good)), 500):
        changed = bytearray(good)
        changed[at] ^= 1 << rng.randrange(8)
        for bad in (bytes(changed), good[:at]):
            path.write_bytes(bad)
            with pytest.raises(DamageError, match=r"shards\.parquet is damaged"):
                small.reader()


@pytest.mark.parametrize("check", CHECKS)
def test_flips_in_a_bucket_cost_the_samples_that_they_are_in(small: Small, tmp_path: Path, check: Check) -> None:
    """A shard that is not the card's is read by range with digests, whatever the check."""
    rng = random.Random(SEED)
    file = os.open(small.tar, os.O_RDWR)
    for at in rng.sample(range(small.tar.stat().st_size), 80):
        bit = rng.randrange(8)
        flip(file, at, bit)
        reader = DatasetReader(FarStore(small.root), "small", check=check, cache=tmp_path / "cache")
        found = outcomes(reader)
        reader.close()
        flip(file, at, bit)
        shutil.rmtree(tmp_path / "cache")
        hit = set.union(*small.hit(at))
        assert found == [None if row in hit else sample for row, sample in enumerate(small.samples)], (SEED, at, bit)
    os.close(file)


@pytest.mark.parametrize("check", CHECKS)
def test_flips_and_cuts_in_the_cache_cost_nothing(small: Small, tmp_path: Path, check: Check) -> None:
    rng = random.Random(SEED)
    far = FarStore(small.root)

    def read_through() -> list[Sample | None]:
        reader = DatasetReader(far, "small", check=check, cache=tmp_path / "cache")
        try:
            return outcomes(reader)
        finally:
            reader.close()

    read_through()
    (cached,) = cached_shards(tmp_path / "cache")
    (index,) = (tmp_path / "cache").rglob("*.parquet")
    out_of_reach = set() if check == "digest" else {at for image in small.images for at in image}
    for path, places in ((cached, set(range(cached.stat().st_size)) - out_of_reach), (index, None)):
        good = path.read_bytes()
        for at in rng.sample(sorted(places or range(len(good))), 80):
            changed = bytearray(good)
            changed[at] ^= 1 << rng.randrange(8)
            for bad in (bytes(changed), good[:at]):
                if path != index:
                    (path,) = cached_shards(tmp_path / "cache")  # one that was fetched again has another suffix
                path.write_bytes(bad)
                assert read_through() == small.samples, (SEED, path.suffix, at)
