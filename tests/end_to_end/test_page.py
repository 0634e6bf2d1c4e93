"""The page as a reader meets it: opened in headless Chromium, in light, in dark, and on a narrow screen."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.base.progress import Silent
from pipeline.report.stage import build_report
from tests.support.browser import PageFindings, chromium, inspect_page
from tests.support.example_run import RUN, build_example

SCREENSHOTS = Path(__file__).parents[2] / "build" / "screenshots"
MIN_COLOURS = 4  # a picture of fewer distinct colours shows nothing

pytestmark = pytest.mark.skipif(chromium() is None, reason="no Chromium on this machine (looked for /usr/bin/chromium)")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of the made-up run."""
    store = build_example(tmp_path_factory.mktemp("page"))
    summary = build_report(store, RUN, name=RUN, code_version="0.1.0+test", progress=Silent())
    return Path(summary["report"])


@pytest.fixture(scope="module")
def seen(page: Path) -> PageFindings:
    """What Chromium found on it; the screenshot is kept."""
    return inspect_page(page, SCREENSHOTS / "page.png")


def test_nothing_is_complained_of_and_nothing_is_asked_for(seen: PageFindings) -> None:
    assert seen.console == ()
    assert seen.requests == ()


def test_every_picture_shows_something(seen: PageFindings) -> None:
    assert len(seen.pictures) > 30
    assert [one for one in seen.pictures if not one.alt] == []
    assert [one.alt for one in seen.pictures if one.width == 0 or one.height == 0 or one.shown_width == 0] == []
    assert [one.alt for one in seen.pictures if one.num_colours < MIN_COLOURS] == []


def test_the_sections_stand_in_order(seen: PageFindings) -> None:
    headings = [
        "Does the last checkpoint beat both baselines?",
        "Is the last checkpoint better than the one before?",
        "Facts",
        "Training",
        "Scores",
        "Inside the model",
        "What it says of test images",
        "What it confuses",
        "How to read this",
    ]
    places = [seen.text.index(f"{heading}\n") for heading in headings]
    assert places == sorted(places)


def test_the_screenshot_is_of_the_whole_page(seen: PageFindings) -> None:
    image = pytest.importorskip("PIL.Image").open(seen.screenshot)
    assert image.size == (seen.width, seen.height)
    assert len(image.convert("P").getcolors()) > MIN_COLOURS


def test_dark_and_narrow(page: Path) -> None:
    narrow = inspect_page(page, SCREENSHOTS / "page-dark.png", dark=True, width=600)
    assert narrow.console == ()
    assert narrow.width == 600, "nothing but the tables scrolls sideways"
    image = pytest.importorskip("PIL.Image").open(narrow.screenshot).convert("L")
    assert image.getpixel((2, 2)) < 60, "the ground is dark"


def test_the_check_itself_sees_a_broken_page(tmp_path: Path) -> None:
    broken = tmp_path / "broken.html"
    blank = "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/%3E"
    body = f'<img src="{blank}"><img src="data:image/png;base64,AAAA" alt="x"><script>console.error("oh no")</script>'
    broken.write_text(f"<!DOCTYPE html><html><head><title>b</title></head><body>{body}</body></html>")
    found = inspect_page(broken, tmp_path / "broken.png")
    assert any("oh no" in line for line in found.console)
    assert [(one.alt, one.width, one.num_colours) for one in found.pictures] == [(None, 9, 1), ("x", 0, 0)]
