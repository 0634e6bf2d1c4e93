"""Open a page in headless Chromium and say what a reader would meet: console errors, empty pictures, outside requests.

Nothing is served and nothing is installed: the page is opened as a file. A copy of it, with a small script added and
its Content-Security-Policy taken out so that the script may run, reports on the pictures; the page itself, untouched,
gives the screenshot and the console.
"""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHROMIUM = "/usr/bin/chromium"
WIDTH, MAX_HEIGHT = 1240, 16_000
TIMEOUT_SECONDS = 90

_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--hide-scrollbars",
    "--enable-logging=stderr",
    "--virtual-time-budget=15000",
)

_POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')

_SCRIPT = """
<script>
const problems = [];
addEventListener("error", event => problems.push(event.message || "a resource failed: " + event.target.src), true);
function look(image) {
  const canvas = document.createElement("canvas");
  canvas.width = Math.min(image.naturalWidth, 320) || 1;
  canvas.height = Math.min(image.naturalHeight, 320) || 1;
  const context = canvas.getContext("2d", {willReadFrequently: true});
  context.imageSmoothingEnabled = false;
  context.drawImage(image, 0, 0, canvas.width, canvas.height);
  const words = new Uint32Array(context.getImageData(0, 0, canvas.width, canvas.height).data.buffer);
  return new Set(words).size;
}
addEventListener("load", () => {
  const pictures = [];
  for (const image of document.images) {
    if (!image.complete) problems.push("not loaded: " + image.alt);
    let colours = 0;
    try { colours = look(image); } catch (error) { problems.push(String(error)); }
    pictures.push({alt: image.getAttribute("alt"), width: image.naturalWidth, height: image.naturalHeight,
                   shown_width: image.clientWidth, num_colours: colours});
  }
  const resources = performance.getEntriesByType("resource").map(entry => entry.name);
  const found = {title: document.title, height: document.documentElement.scrollHeight,
                 width: document.documentElement.scrollWidth, text: document.body.innerText, problems, pictures,
                 requests: resources.filter(name => !name.startsWith("data:"))};
  const out = document.createElement("pre");
  out.id = "page-findings";
  out.textContent = JSON.stringify(found);
  document.body.append(out);
});
</script>
"""


class BrowserError(RuntimeError):
    """Chromium did not do what it was asked."""


@dataclass(frozen=True)
class PictureFinding:
    """One <img>: its alt text (None: it has none), its own size, the width it is shown at, its distinct colours."""

    alt: str | None
    width: int
    height: int
    shown_width: int
    num_colours: int


@dataclass(frozen=True)
class PageFindings:
    """What was seen of a page. ``requests`` are addresses beyond the page itself that it asked for."""

    title: str
    text: str
    width: int
    height: int
    console: tuple[str, ...]
    requests: tuple[str, ...]
    pictures: tuple[PictureFinding, ...]
    screenshot: Path


def chromium() -> str | None:
    """The browser's program, or None when there is none on this machine."""
    return CHROMIUM if Path(CHROMIUM).exists() else shutil.which("chromium") or shutil.which("google-chrome")


def inspect_page(html_path: Path, screenshot_path: Path, *, dark: bool = False, width: int = WIDTH) -> PageFindings:
    """Open *html_path*, write a picture of its full height to *screenshot_path*, and say what was found.

    Raises BrowserError when there is no browser, or it fails.
    """
    html_path, screenshot_path = html_path.absolute(), screenshot_path.absolute()
    screenshot_path.parent.mkdir(parents=True, exist_ok=True)
    scheme = [f"--blink-settings=preferredColorScheme={0 if dark else 1}"]
    with tempfile.TemporaryDirectory(prefix="page-") as folder:
        wrapper = Path(folder) / "wrapper.html"
        wrapper.write_text(_with_script(html_path.read_text(encoding="utf-8")), encoding="utf-8")
        dom, _ = _run([*scheme, f"--window-size={width},1000", "--dump-dom", wrapper.as_uri()])
        found = _findings(dom)
        height = min(int(found["height"]), MAX_HEIGHT)
        size = [f"--window-size={width},{height}", f"--screenshot={screenshot_path}"]
        _, log = _run([*scheme, *size, html_path.as_uri()])
    if not screenshot_path.exists():
        raise BrowserError(f"no screenshot was written: {log[-2000:]}")
    console = [line for line in log.splitlines() if "CONSOLE" in line]
    return PageFindings(
        title=found["title"],
        text=found["text"],
        width=found["width"],
        height=found["height"],
        console=(*console, *found["problems"]),
        requests=tuple(found["requests"]),
        pictures=tuple(PictureFinding(**picture) for picture in found["pictures"]),
        screenshot=screenshot_path,
    )


def _with_script(page: str) -> str:
    return _POLICY.sub("", page, count=1).replace("</head>", f"{_SCRIPT}</head>", 1)


def _findings(dom: str) -> dict[str, Any]:
    match = re.search(r'<pre id="page-findings">(.*?)</pre>', dom, re.DOTALL)
    if match is None:
        raise BrowserError(f"the page did not finish loading; its DOM ends with {dom[-500:]!r}")
    found: dict[str, Any] = json.loads(html.unescape(match[1]))
    return found


def _run(arguments: list[str]) -> tuple[str, str]:
    program = chromium()
    if program is None:
        raise BrowserError("no Chromium on this machine")
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as profile:
        command = [program, *_FLAGS, f"--user-data-dir={profile}", *arguments]
        environment = os.environ | {"HOME": profile}
        with subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            start_new_session=True,
        ) as browser:
            try:
                out, log = browser.communicate(timeout=TIMEOUT_SECONDS)
            except BaseException as error:
                os.killpg(browser.pid, signal.SIGKILL)  # its own session: the browser and its helpers, nothing else
                if isinstance(error, subprocess.TimeoutExpired):
                    raise BrowserError(f"Chromium did not finish in {TIMEOUT_SECONDS} s") from None
                raise
    if browser.returncode != 0:
        raise BrowserError(f"Chromium ended with {browser.returncode}: {log[-2000:]}")
    return out, log
