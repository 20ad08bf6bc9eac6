"""What several test files share."""

import os
import shutil

import pytest
from hypothesis import HealthCheck, settings

# Files that run side by side wait for each other: how long a draw took says nothing.
settings.register_profile("default", suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("repeatable", settings.get_profile("default"), derandomize=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

if "PYTEST_XDIST_WORKER" in os.environ:  # workers share the cores, before torch takes them all
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items):
    """The book first: it takes longest, and all else can run beside it."""
    items.sort(key=lambda item: item.path.name != "test_book.py")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Of tests that run side by side, a file is one worker's: what it has made serves all in it."""
    from xdist.scheduler import LoadFileScheduling

    return LoadFileScheduling(config, log)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Headless Chromium that logs every request."""
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("Chromium or chromedriver is not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (
        "headless no-sandbox disable-gpu disable-quic disable-dev-shm-usage disable-sync "
        "disable-background-networking disable-component-update no-first-run"
    ).split():
        options.add_argument(f"--{flag}")
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('chromium')}")
    options.add_argument("--window-size=1280,900")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    browser.get("about:blank")
    browser.get_log("performance")  # forget the requests of Chromium's own start page
    yield browser
    browser.quit()
