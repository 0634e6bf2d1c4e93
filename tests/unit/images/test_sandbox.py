"""The sandbox says what ``check_image`` says, in order, lazily, whatever the sizes; its child is kept, and ends."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from pipeline.base.errors import FailedError
from pipeline.images import sandbox as sandbox_process
from pipeline.images.check import CheckOptions, CheckResult, Reencode, check_image
from pipeline.images.decode import ImageRejectedError
from pipeline.images.sandbox import Limits, Sandbox, shared_sandbox
from tests.support.jpegs import damaged, jpegs, smooth
from tests.support.pictures import bmp, encoded, noise, png, png_that_claims

ALL = CheckOptions(statistics=True, pixels_sha256=True, reencode=Reencode(mode="short", size=24))


def said(result: CheckResult | ImageRejectedError) -> object:
    """*result* as something that can be compared."""
    return result if isinstance(result, CheckResult) else (result.reason, result.detail)


def in_this_process(data: bytes, options: CheckOptions) -> object:
    try:
        return check_image(data, options)
    except ImageRejectedError as error:
        return error.reason, error.detail


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(CheckOptions()) as made:
        yield made


@pytest.mark.parametrize("options", [CheckOptions(), ALL], ids=["decode", "all"])
def test_it_says_what_examine_says_in_the_same_order(options: CheckOptions) -> None:
    draw = random.Random(3)
    images = [data if draw.random() < 0.7 else damaged(data, draw) for data in jpegs(60, seed=3)]
    images += [
        b"",
        b"x",
        b"<html>",
        png_that_claims(2**31 - 1, 1),
        png(noise(9, 9)),
        encoded(smooth(8, 9), "WEBP"),
        b"",
    ]
    with Sandbox(options) as sandbox:
        got = list(sandbox.check(enumerate(images)))
    assert [tag for tag, _, _ in got] == list(range(len(images)))
    assert [data for _, data, _ in got] == images
    assert [said(result) for _, _, result in got] == [in_this_process(data, options) for data in images]


def test_the_child_is_kept_from_call_to_call(sandbox: Sandbox) -> None:
    images = [(number, png(noise(3, 3, number))) for number in range(5)]
    list(sandbox.check(images))
    pid = sandbox.pid
    assert list(sandbox.check([])) == []
    assert len(list(sandbox.check(images))) == 5
    assert sandbox.pid == pid
    assert pid is not None


def test_large_images_and_large_results_do_not_lock_up() -> None:
    """Each is several times what the pipes hold, and the caller takes none before all have come."""
    options = CheckOptions(reencode=Reencode(mode="short", size=900, format="png", enlarge=True))
    images = [bmp(noise(900, 900, seed)) for seed in range(3)]
    with Sandbox(options, Limits(window_bytes=1 << 30)) as sandbox:
        results = [result for _, _, result in sandbox.check(enumerate(images))]
    for result, data in zip(results, images, strict=True):
        assert isinstance(result, CheckResult)
        assert result.data
        assert len(result.data) > 2_000_000
        assert said(result) == in_this_process(data, options)


def test_it_reads_no_further_than_the_window() -> None:
    taken = 0

    def source() -> Iterator[tuple[int, bytes]]:
        nonlocal taken
        for number in range(100):
            taken += 1
            yield number, png(noise(20, 20, number))

    size = len(png(noise(20, 20)))
    for limits, most in ((Limits(window_images=7), 7), (Limits(window_bytes=3 * size), 3)):
        taken = 0
        with Sandbox(CheckOptions(), limits) as sandbox:
            for number, _, _ in sandbox.check(source()):
                assert taken <= number + most
        assert taken == 100


def test_one_image_larger_than_the_window_is_checked() -> None:
    with Sandbox(CheckOptions(), Limits(window_bytes=10)) as sandbox:
        assert all(isinstance(result, CheckResult) for _, _, result in sandbox.check([(0, bmp(noise(9, 9)))] * 3))


def test_a_caller_that_leaves_early_leaves_nothing_behind(sandbox: Sandbox) -> None:
    images = [(number, png(noise(5, 5, number))) for number in range(40)]
    series = sandbox.check(images)
    next(series)
    series.close()
    assert [tag for tag, _, _ in sandbox.check(images)] == list(range(40))


def test_an_error_of_the_source_reaches_the_caller(sandbox: Sandbox) -> None:
    def source() -> Iterator[tuple[int, bytes]]:
        yield 1, png(noise(5, 5))
        raise OSError("the source failed")

    with pytest.raises(OSError, match="the source failed"):
        list(sandbox.check(source()))
    assert len(list(sandbox.check([(1, png(noise(5, 5)))]))) == 1


def test_two_series_at_once_are_refused(sandbox: Sandbox) -> None:
    series = sandbox.check([(1, png(noise(5, 5)))] * 3)
    next(series)
    with pytest.raises(RuntimeError, match="one series"):
        next(sandbox.check([(1, b"x")]))
    series.close()


def test_the_child_is_small_and_alone(sandbox: Sandbox, tmp_path: Path) -> None:
    list(sandbox.check([(1, png(noise(5, 5)))]))
    child = psutil.Process(sandbox.pid)
    maps = Path(f"/proc/{child.pid}/maps").read_text()
    assert not [name for name in ("torch", "pyarrow", "/ray/") if name in maps]
    with (tmp_path / "inherited").open("w") as file:
        os.set_inheritable(file.fileno(), True)
        with Sandbox(CheckOptions()) as other:
            list(other.check([(1, png(noise(5, 5)))]))
            links = [os.readlink(link) for link in Path(f"/proc/{other.pid}/fd").iterdir()]
    assert not [link for link in links if "inherited" in link]
    assert len(links) <= 6
    assert child.memory_info().rss < 100_000_000


def test_ctrl_c_does_not_reach_it(sandbox: Sandbox) -> None:
    list(sandbox.check([(1, png(noise(5, 5)))]))
    pid = sandbox.pid
    assert pid is not None
    assert os.getpgid(pid) != os.getpgid(0)
    os.kill(pid, signal.SIGINT)
    assert len(list(sandbox.check([(1, png(noise(5, 5)))]))) == 1
    assert sandbox.pid == pid


def test_closing_ends_the_child() -> None:
    sandbox = Sandbox(CheckOptions())
    list(sandbox.check([(1, png(noise(5, 5)))]))
    pid = sandbox.pid
    assert pid is not None
    sandbox.close()
    assert not psutil.pid_exists(pid)
    sandbox.close()


def test_the_shared_one_is_one_for_each_kind_of_options() -> None:
    first = shared_sandbox(CheckOptions())
    assert shared_sandbox(CheckOptions()) is first
    assert shared_sandbox(CheckOptions(statistics=True)) is not first
    assert len(list(first.check([(1, png(noise(5, 5)))]))) == 1
    first.close()


PARENT = """if True:
    import sys
    from pipeline.images.check import CheckOptions
    from pipeline.images.sandbox import Sandbox, shared_sandbox
    from tests.support.pictures import png, noise
    sandbox = shared_sandbox(CheckOptions())
    list(sandbox.check([(1, png(noise(5, 5)))]))
    print(sandbox.pid, flush=True)
    if sys.argv[1] == "hang":
        list(sandbox.check([(1, b"vitpipe-fault:" + sys.argv[2].encode())]))
    if sys.argv[1] == "wait":
        sys.stdin.read()
"""


def start_parent(*arguments: str) -> tuple[subprocess.Popen[str], psutil.Process]:
    """Another process with a sandbox, and its child."""
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"VITPIPE_FAIL_AT": "decode"},
    )
    assert parent.stdout
    return parent, psutil.Process(int(parent.stdout.readline()))


@pytest.mark.parametrize("arguments", [("wait",), ("hang", "sleep"), ("hang", "spin")], ids=["idle", "asleep", "busy"])
def test_a_killed_parent_leaves_no_process(arguments: tuple[str, ...]) -> None:
    parent, child = start_parent(*arguments)
    parent.kill()
    parent.wait()
    child.wait(timeout=20)


def test_a_parent_that_ends_leaves_no_process() -> None:
    parent, child = start_parent("end")
    assert parent.wait() == 0
    child.wait(timeout=20)


def test_a_child_that_cannot_start_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox_process, "_PROGRAM", "pipeline.images.no_such_program")
    with pytest.raises(FailedError, match=r"cannot start: .*no_such_program"):
        list(Sandbox(CheckOptions()).check([(1, b"x")]))
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with pytest.raises(FailedError, match=r"cannot start: .*No such file"):
        list(Sandbox(CheckOptions()).check([(1, b"x")]))


def test_an_image_that_needs_more_than_the_limit_costs_itself_alone() -> None:
    large = encoded(Image.new("L", (7_000, 7_000)), "PNG")
    with Sandbox(CheckOptions(), Limits(memory_bytes=250_000_000)) as sandbox:
        first, second, third = sandbox.check([(1, png(noise(5, 5))), (2, large), (3, png(noise(6, 6)))])
        assert isinstance(second[2], ImageRejectedError)
        assert second[2].reason == "decoder-memory"
        assert isinstance(first[2], CheckResult)
        assert isinstance(third[2], CheckResult)


def test_it_works_in_a_thread() -> None:
    """A child lives as long as the thread that started it; the next thread gets another."""
    sandbox, results = Sandbox(CheckOptions()), []
    for _ in range(2):
        thread = threading.Thread(target=lambda: results.extend(sandbox.check([(1, png(noise(5, 5)))])))
        thread.start()
        thread.join()
    sandbox.close()
    assert [isinstance(result, CheckResult) for _, _, result in results] == [True, True]


@pytest.mark.long
@pytest.mark.parametrize("kind", ["RGB", "RGBA", "I;16", "F", "turned", "P"])
def test_a_legal_image_of_64_megapixels_has_memory_and_time_enough(kind: str) -> None:
    flat = np.zeros((8_000, 8_000), dtype=np.uint8)
    image = {
        "RGB": lambda: Image.new("RGB", (8_000, 8_000), "red"),
        "RGBA": lambda: Image.new("RGBA", (8_000, 8_000), (9, 9, 9, 9)),
        "I;16": lambda: Image.fromarray(flat.astype(np.uint16)),
        "F": lambda: Image.fromarray(flat.astype(np.float32)),
        "turned": lambda: Image.new("RGB", (8_000, 8_000), "red"),
        "P": lambda: Image.fromarray(flat).convert("P"),
    }[kind]()
    exif = Image.Exif()
    exif[0x0112] = 6 if kind == "turned" else 1
    data = encoded(image, "TIFF" if kind == "F" else "PNG", exif=exif)
    options = CheckOptions(statistics=True, pixels_sha256=True, reencode=Reencode(mode="short", size=256))
    with Sandbox(options) as sandbox:
        ((_, _, result),) = sandbox.check([(1, data)])
    assert isinstance(result, CheckResult)
    assert result.num_pixels == 32 * 8_000
