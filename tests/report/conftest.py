"""Fixtures for the tests of the HTML report in a browser."""

import shutil
from types import SimpleNamespace

import pytest
from browser_user import User
from findings import make_finding
from page_data import HEADER, make_place

from pnsamp_jax.report import html_page


@pytest.fixture(scope="session")
def browser():
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs the Python package selenium")
    programs = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if None in programs:
        pytest.skip("needs the programs chromium and chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = programs[0]
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for argument in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "disable-extensions"):
        options.add_argument(f"--{argument}")
    options.add_argument("--host-resolver-rules=MAP * ~NOTFOUND")  # keeps the browser itself off the network, too
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(programs[1]))
    yield User(driver, webdriver)
    driver.quit()


@pytest.fixture(scope="session")
def nodules(tmp_path_factory):
    """Write a page of three nodules; for nodule_10 as few values as possible are known."""
    nan = float("nan")
    findings = {
        "nodule_2": make_finding("nodule_2", seed=2, locator=make_place()),
        "nodule_10": make_finding(
            "nodule_10", seed=10, known=False, saliency=None, flip_spread=nan, image="b/last.nrrd"
        ),
        "nodule_1": make_finding("nodule_1", seed=1, size=32, image="a/first.nrrd"),
    }
    path = tmp_path_factory.mktemp("page") / "page.html"
    html_page.write_page([*findings.values()], "Nodules & <co>", path, header=HEADER)
    return SimpleNamespace(path=path, findings=findings)


@pytest.fixture
def user(browser, nodules):
    """Yield a user who has opened the page; fail if the browser logged any message."""
    browser.emulate()
    browser.driver.get_log("browser")
    browser.load(nodules.path)
    yield browser
    assert not browser.driver.get_log("browser")
