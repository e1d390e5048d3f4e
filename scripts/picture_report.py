"""Makes the picture of the report in README: the sample browser of a run with traces, in headless Chromium.

proxytune run trace=full output=outputs/picture
python scripts/picture_report.py outputs/picture docs/images/report.png
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from proxytune.reporting.report import find_runs, write_report

SIZE = {"width": 1280, "height": 800}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the folder of a run with trace=full")
    parser.add_argument("picture", type=Path, help="the PNG file to write")
    parser.add_argument("--item", default="miniature_gsm/0", help="task/item; default: %(default)s")
    parser.add_argument("--arm", default="dynamic", help="whose changed token is pointed at; default: %(default)s")
    given = parser.parse_args()
    report = given.run / "report.html"
    write_report(find_runs([given.run]), report)
    given.picture.parent.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport=SIZE, color_scheme="light")
        page.goto(f"{report.resolve().as_uri()}#{given.item}")
        point(page, given.arm)
        page.screenshot(path=given.picture)
        browser.close()
    print(f"{given.picture}: {given.picture.stat().st_size / 1e3:.0f} kB")


def point(page: Page, arm: str) -> None:
    """Shows the numbers of a token that the base alone would not have chosen."""
    page.wait_for_selector("#samples[data-ready]")
    page.locator(".browser").evaluate("browser => browser.scrollIntoView()")
    page.locator(f".card[aria-label={arm}] .token.changed").first.hover()


if __name__ == "__main__":
    main()
