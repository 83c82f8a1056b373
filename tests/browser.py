"""A headless Chromium, and what it makes of a page."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PROBE = """
<script>
window.addEventListener("load", () => {
  const box = (it) => { const found = it.getBoundingClientRect(); return [found.width, found.height]; };
  const all = (what) => [...document.querySelectorAll(what)];
  document.querySelectorAll("details").forEach((it) => { it.open = true; });
  const texts = all("figure text").map((it) =>
    [it.closest("figure").id, getComputedStyle(it).fill, it.getBoundingClientRect().height]);
  parent.postMessage(JSON.stringify({
    width: innerWidth, scroll: document.documentElement.scrollWidth,
    wide: all("body *").filter((it) => it.getBoundingClientRect().right > innerWidth + 0.5
      && !it.closest(".scroll, .drawing")).map((it) => it.outerHTML.slice(0, 120)),
    figures: Object.fromEntries(all("figure").map((it) => [it.id, box(it.querySelector("svg"))])),
    texts: texts, ground: getComputedStyle(document.documentElement).backgroundColor,
    ink: getComputedStyle(document.documentElement).color,
    scrolled: all(".scroll").filter((it) => it.scrollWidth > it.clientWidth + 1).map((it) => {
      it.scrollLeft = 60;
      const left = it.getBoundingClientRect().left, hint = getComputedStyle(it, "::before");
      return [[...it.querySelectorAll("th[scope=row]")].map((th) => th.getBoundingClientRect().left - left),
              hint.position + " " + hint.right + " " + hint.display];
    }),
    cut: all("table, svg").filter((it) => it.getBoundingClientRect().right > innerWidth + 0.5)
      .map((it) => it.outerHTML.slice(0, 120)),
    tables: all("table").length, fetched: performance.getEntriesByType("resource").map((it) => it.name),
  }), "*");
});
</script>
"""
FRAMES = """<!DOCTYPE html><html><body style="margin:0"><pre id="found"></pre><script>
const found = [];
addEventListener("message", (it) => {
  found.push(it.data);
  document.getElementById("found").textContent = JSON.stringify(found);
});
</script>%s</body></html>"""


def find_browser() -> str | None:
    """The command of an installed Chromium or Chrome."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """Runs a command of :func:`find_browser` in a profile of its own, without the network.

    Args:
        command: The browser.
        folder: For its profile and for copies of pages.
    """

    def __init__(self, command: str, folder: Path) -> None:
        self._command, self._folder = command, folder

    def complaints(self, page: Path) -> list[str]:
        """What a page as it is writes to the console: errors, blocked or failed requests."""
        output = self._run("--enable-logging=stderr", "--screenshot=" + str(self._folder / "page.png"), page.as_uri())
        return [line for line in output.splitlines() if "CONSOLE" in line]

    def look(self, page: Path, widths: Sequence[int], *, dark: bool = False, printed: bool = False
             ) -> list[dict[str, Any]]:
        """What a page looks like at some widths, in their order, unfolded: sizes, colours, what sticks out.

        Its policy is taken away, so that what it would block is tried and seen under ``fetched``. With ``printed`` its
        rules for print hold.
        """
        copy = self._folder / "probed.html"
        policy = re.compile(r"<meta http-equiv=\"Content-Security-Policy\"[^>]*>")
        copy.write_text(policy.sub("", page.read_text()).replace("</body>", f"{PROBE}</body>"))
        if printed:
            copy.write_text(copy.read_text().replace("@media print", "@media all"))
        frames = "".join(f'<iframe src="{copy.name}" style="border:0;width:{width}px;height:900px"></iframe>'
                         for width in widths)
        (self._folder / "frames.html").write_text(FRAMES % frames)
        output = self._run(f"--blink-settings=preferredColorScheme={0 if dark else 1}", "--virtual-time-budget=5000",
                           "--dump-dom", (self._folder / "frames.html").as_uri())
        found = re.search(r'<pre id="found">(.*?)</pre>', output, re.S)
        assert found is not None, output[-2000:]
        unescaped = found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
        looks = [json.loads(one) for one in json.loads(unescaped)]
        return sorted(looks, key=lambda one: list(widths).index(one["width"]))

    def _run(self, *arguments: str) -> str:
        done = subprocess.run(
            [self._command, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars",
             "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
             "--host-resolver-rules=MAP * ~NOTFOUND", "--window-size=1400,900",
             f"--user-data-dir={self._folder / 'profile'}", *arguments],
            capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout + done.stderr
