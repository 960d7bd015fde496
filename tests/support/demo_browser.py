"""Drives the demo page in headless Chromium."""

import base64
import io
import json
import pathlib
import tempfile
import urllib.parse
import urllib.request

from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from tests.support.demo_server import PATIENCE

_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip


class Page:
    """The page in its own browser."""

    def __init__(self, address: str, *, width: int = 1280, height: int = 800, zoom: int | float = 1):
        self._width = width
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        options = webdriver.ChromeOptions()
        for flag in (
            *_FLAGS,
            f"--user-data-dir={self._profile.name}",
            f"--window-size={width},{height}",
            f"--force-device-scale-factor={zoom}",
        ):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
        service = webdriver.ChromeService("/usr/bin/chromedriver")
        self.driver = webdriver.Chrome(options=options, service=service)
        metrics = {"width": width, "height": height, "deviceScaleFactor": zoom, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)  # windows have a minimum width
        self._requested: list[str] = []
        self.open(address)

    def __enter__(self) -> "Page":
        return self

    def __exit__(self, *error: object) -> None:
        self.driver.quit()
        self._profile.cleanup()

    def wait(self, selector: str, text: str = "") -> str:
        """Waits for a visible element that contains `text`, and returns its text."""

        def find(driver: webdriver.Chrome) -> str | None:
            elements = driver.find_elements(By.CSS_SELECTOR, selector)
            return next((e.text or " " for e in elements if e.is_displayed() and text in e.text), None)

        return WebDriverWait(self.driver, PATIENCE, ignored_exceptions=_stale()).until(find)

    def open(self, address: str) -> None:
        """Loads the page."""
        self.driver.get(address)
        self.wait("#run")

    def upload(self, path: pathlib.Path) -> None:
        """Chooses a file as a visitor does, without waiting."""
        self.driver.find_element(By.CSS_SELECTOR, "#image input[type=file]").send_keys(str(path))

    def click(self) -> None:
        """Clicks the button."""
        self.driver.find_element(By.CSS_SELECTOR, "#run").click()

    def segment(self, path: pathlib.Path) -> str:
        """Uploads a file, clicks, waits for the result, and returns the report."""
        self.upload(path)
        self.wait("#image img")
        self.click()
        report = self.wait("#report .time", "segmented in")
        self.wait("#overlay img")
        self.wait("#mask img")
        return report

    def pixels(self, kind: str) -> Image.Image:
        """Downloads the image that `overlay` or `mask` shows."""
        source = self.driver.find_element(By.CSS_SELECTOR, f"#{kind} img").get_attribute("src")
        with urllib.request.urlopen(source, timeout=60) as response:
            return Image.open(io.BytesIO(response.read()))

    def screenshot(self) -> Image.Image:
        """Captures the page from its top to the end of its content."""
        script = (
            "return Math.max(...['#run', '#report'].map(i => document.querySelector(i).getBoundingClientRect().bottom))"
        )
        bottom = self.driver.execute_script(script)
        clip = {"x": 0, "y": 0, "width": self._width, "height": bottom + 20, "scale": 1}
        shot = self.driver.execute_cdp_cmd("Page.captureScreenshot", {"clip": clip, "captureBeyondViewport": True})
        return Image.open(io.BytesIO(base64.b64decode(shot["data"])))

    def requests(self) -> list[str]:
        """Returns the address of every request of the page."""
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] in ("Network.requestWillBeSent", "Network.webSocketCreated"):
                parameters = message["params"]
                self._requested.append(parameters.get("url") or parameters["request"]["url"])
        return self._requested

    def console_messages(self) -> list[str]:
        """Returns the browser's console: failed and blocked requests, script errors."""
        return [entry["message"] for entry in self.driver.get_log("browser")]


def _stale() -> list[type[Exception]]:
    from selenium.common.exceptions import StaleElementReferenceException

    return [StaleElementReferenceException]
