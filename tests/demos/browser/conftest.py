"""A real browser in front of the page: Debian's chromium, driven by Playwright; skipped, with a reason, without."""

import json
import os
import shutil
from pathlib import Path

import pytest

from tests.demos.browser.visitor import SIZES, Visit, asked_by_pages, settle

ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
SHOTS = Path(os.environ.get("VTPRUNE_SCREENSHOTS") or Path(__file__).with_name("screenshots"))


@pytest.fixture(scope="session")
def address(engine):
    pytest.importorskip("gradio", reason="needs gradio: pip install 'vtprune[demo]'")
    from vtprune.demo.page.app import build, launch

    page = build(engine)
    yield launch(page)
    page.close()


@pytest.fixture(scope="session")
def browser(address, tmp_path_factory):
    """Chromium, which writes down every request of every page, worker and font itself; read when all is over."""
    driver = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install playwright")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("needs a browser: apt-get install chromium")
    log = tmp_path_factory.mktemp("net") / "log.json"
    with driver.sync_playwright() as playwright:
        arguments = [*ARGUMENTS, f"--log-net-log={log}", "--net-log-capture-mode=Default"]
        opened = playwright.chromium.launch(executable_path=chromium, args=arguments)
        yield opened
        opened.close()
    asked = asked_by_pages(json.loads(log.read_text(encoding="utf-8")))
    assert any(url.startswith(address) for url in asked), "the browser's log holds no request of the page"
    assert [url for url in asked if not url.startswith(address)] == []


@pytest.fixture
def visit(browser, address):
    """``visit("phone", "dark")`` opens the page; afterwards, no error was logged and no other host was asked."""
    visits: list[Visit] = []

    def open_page(size: str = "desktop", scheme: str = "light"):
        width, height = SIZES[size]
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        one = Visit(context)
        visits.append(one)
        one.page.goto(address)
        one.page.get_by_text("Times are medians of 3 runs").first.wait_for()
        settle(one.page)
        return one.page

    yield open_page
    for one in visits:
        workers = one.page.evaluate("() => navigator.serviceWorker.getRegistrations().then(all => all.length)")
        assert workers == 0 and one.context.service_workers == []
        one.context.close()
    local = (address, "data:", "blob:", address.replace("http", "ws", 1))
    assert [url for one in visits for url in one.urls if not url.startswith(local)] == []
    assert [error for one in visits for error in one.errors] == []


@pytest.fixture
def keep():
    """``keep(page, name)`` writes a screenshot of the whole page, for people to look at."""

    def shoot(page, name: str) -> None:
        SHOTS.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=SHOTS / f"{name}.png", full_page=True)

    return shoot
