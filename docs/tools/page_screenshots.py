"""Take the screenshots of written pages (reports, search sheets, pages of maps): light, dark, and on a phone.

    python docs/tools/page_screenshots.py docs/images report=evaluation/report.html search-sheet=found.html

writes report.webp, report-dark.webp and report-phone.webp, and so on. It needs playwright, and Chromium on the path.
"""

import io
import shutil
import sys
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

WIDE, PHONE = {"width": 1120, "height": 800}, {"width": 375, "height": 740}
FORMS = (("", WIDE, "light"), ("-dark", WIDE, "dark"), ("-phone", PHONE, "light"))
SCREENS = 1.6
"""The most of a page that is shown, in heights of the window."""


def main(folder: Path, pages: dict[str, Path]) -> None:
    with sync_playwright() as started:
        browser: Any = started.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for name, path in pages.items():
            for suffix, viewport, scheme in FORMS:
                most = round(SCREENS * viewport["height"])
                page = browser.new_page(viewport={**viewport, "height": most}, color_scheme=scheme)
                page.goto(path.resolve().as_uri())
                page.wait_for_timeout(500)  # images that load when they come into view
                height = min(most, page.evaluate("document.body.getBoundingClientRect().height"))
                shot = page.screenshot(clip={"x": 0, "y": 0, "width": viewport["width"], "height": height})
                image = Image.open(io.BytesIO(shot)).convert("RGB")
                image.save(folder / f"{name}{suffix}.webp", quality=65, method=6)
                page.close()
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), {name: Path(path) for name, path in (each.split("=", 1) for each in sys.argv[2:])})
