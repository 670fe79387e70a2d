"""Headless Chromium for the tests of a page; `PAGE_TESTS` skips them where there is no browser or driver."""

import shutil
import tempfile
import time
from contextlib import contextmanager
from importlib.util import find_spec

import pytest

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
PAGE_TESTS = pytest.mark.skipif(not (BROWSER and DRIVER and find_spec("selenium")),
                                reason="needs Chromium, its driver and selenium")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--disable-quic", "--window-size=1600,1200"]


@contextmanager
def chromium(downloads):
    """A driver of a new browser with an empty profile; files that it saves go to `downloads`."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = BROWSER
        for flag in [*FLAGS, f"--user-data-dir={profile}"]:
            options.add_argument(flag)
        options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        driver = webdriver.Chrome(options=options, service=Service(DRIVER))
        driver.set_script_timeout(60)
        try:
            yield driver
        finally:
            driver.quit()


def colour_scheme(driver, scheme):
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def press(driver, *keys):
    """Keys to whatever has the focus, one after another."""
    from selenium.webdriver.common.action_chains import ActionChains

    for key in keys:
        ActionChains(driver).send_keys(key).perform()


def eventually(value, wanted, seconds=10.0):
    """Asserts that value() becomes what is wanted: the address is written a moment after what it says."""
    end = time.monotonic() + seconds
    while (found := value()) != wanted and time.monotonic() < end:
        time.sleep(0.05)
    assert found == wanted
