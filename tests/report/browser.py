"""A real Chromium without a window, for the tests of pages; they are skipped where there is none."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
NEEDED = "needs Chromium and its driver: apt-get install chromium chromium-driver (make check does it as root)"


@contextmanager
def browser() -> Iterator[Any]:
    """A browser that notes its console and every request."""
    if CHROMIUM is None or DRIVER is None:
        pytest.skip(NEEDED)
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium: pip install 'moesaic[dev]'")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for word in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    try:
        yield driver
    finally:
        driver.quit()


def open_page(driver: Any, page: Path, *, width: int = 1280, dark: bool = False) -> None:
    """Open a file at that width, in the colours that the system is said to want."""
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    driver.get(page.as_uri())


def requests_of(driver: Any) -> list[str]:
    """The addresses that were asked for since the last call, but those of files and data."""
    messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    asked = [each["params"]["request"]["url"] for each in messages if each["method"] == "Network.requestWillBeSent"]
    return [url for url in asked if not url.startswith(("file:", "data:", "chrome:"))]
