"""Take the screenshots of docs/demo.md: each tab of the demo, light and dark, on a desktop and on a phone.

    python docs/tools/demo_screenshots.py docs/images models/emoji-search models/scenes-vqa runs/scenes-vle/pretrain \
        runs/scenes-vle/nlvr2-pretrained runs/scenes-vle/vcr-q2a-pretrained runs/scenes-vle/vcr-qa2r-pretrained

It needs the extra `demo`, playwright, and Chromium on the path.
"""

import io
import shutil
import socket
import sys
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from evle.demo.page import demo, start

WIDE, PHONE = {"width": 1120, "height": 640}, {"width": 375, "height": 740}
FORMS = (("", WIDE, "light"), ("-dark", WIDE, "dark"), ("-phone", PHONE, "light"))
EXAMPLES = {"Compare": 1, "Locate": 4}
DONE = ".evle-result:visible"
SECONDS = 120_000


def use(page: Page, tab: str) -> None:
    """Open a tab and have it answer."""
    page.get_by_role("tab", name=tab, exact=True).click()
    panel = page.locator("[role=tabpanel]:visible").last
    page.wait_for_timeout(800)
    if tab == "Search":
        panel.get_by_label("Look for").fill("a bird")
        panel.get_by_label("Look for").press("Enter")
    elif tab == "Reason":
        panel.get_by_role("button", name="Choose").click()
    else:
        panel.locator(".evle-examples button").nth(EXAMPLES.get(tab, 0)).click()
    panel.locator(DONE).first.wait_for(timeout=SECONDS)
    page.wait_for_timeout(1500)
    page.mouse.move(0, 0)


def save(shot: bytes, path: Path) -> None:
    """A screenshot as a WebP of few bytes."""
    Image.open(io.BytesIO(shot)).convert("RGB").save(path, quality=75, method=6)


def main(folder: Path, models: list[str]) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with demo(models) as page, sync_playwright() as started:
        url = start(page, host="127.0.0.1", port=port)
        browser: Any = started.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for suffix, viewport, scheme in FORMS:
            opened = browser.new_page(viewport=viewport, color_scheme=scheme)
            opened.goto(url)
            opened.get_by_role("tab").first.wait_for(timeout=SECONDS)
            for tab in opened.get_by_role("tab").all_inner_texts():
                use(opened, tab)
                save(opened.screenshot(full_page=True), folder / f"demo-{tab.lower()}{suffix}.webp")
            opened.close()
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
