"""A real browser in front of the page: Debian's chromium, driven by Playwright; skipped, with a reason, without."""

import os
import shutil
from pathlib import Path

import pytest

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
def browser():
    driver = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install playwright")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("needs a browser: apt-get install chromium")
    with driver.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium, args=list(ARGUMENTS))
        yield opened
        opened.close()


@pytest.fixture
def visit(browser, address):
    """``visit(width, height)`` opens the page; afterwards, no error was logged and no other host was asked."""
    opened, errors, requests = [], [], []

    def open_page(width: int, height: int):
        context = browser.new_context(viewport={"width": width, "height": height})
        opened.append(context)
        page = context.new_page()
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(address)
        page.get_by_text("distributions of the first answer token").first.wait_for(timeout=60_000)
        return page

    yield open_page
    for context in opened:
        context.close()
    local = (address, "data:", "blob:", address.replace("http", "ws", 1))
    assert [url for url in requests if not url.startswith(local)] == []
    assert errors == []


@pytest.fixture
def keep():
    """``keep(page, name)`` writes a screenshot that people look at."""

    def shoot(page, name: str) -> None:
        SHOTS.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=SHOTS / f"{name}.png", full_page=True)

    return shoot
