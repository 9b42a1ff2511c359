"""What a visitor does: uploads, moves the slider, switches policy, reads answers, clicks a cell, stops long work."""

import io
import re
import time

import numpy as np
import pytest
from PIL import Image

from tests.demos.browser.visitor import SIZES, settle
from vtprune.demo import study
from vtprune.demo.pictures import story

QUESTION = "Which digit is cyan?"


def answers(page) -> list[str]:
    """Both answers that stand on the page."""
    return [text.split()[0] for text in page.locator(".vt-card .vt-said:visible").all_inner_texts()]


def choose(page, label: str, name: str) -> None:
    box = page.get_by_label(label, exact=True).locator("visible=true")
    box.click()
    box.fill(name)
    page.get_by_role("option", name=name, exact=True).click()


def kept(page):
    return page.get_by_alt_text(re.compile(r"^Kept \d+ of 144"))


def stop(page):
    return page.get_by_role("button", name="Stop", exact=True).locator("visible=true")


def fits(page) -> None:
    wide = page.evaluate("() => document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide <= 0, f"the page is {wide} pixels wider than the window"


@pytest.mark.parametrize("size", SIZES)
def test_a_newcomer_sees_both_answers_and_what_they_cost(visit, keep, asked, size):
    """Oracle: the same question without a page."""
    page, wanted = visit(size), asked("fastv", 0.25).values
    assert answers(page) == [wanted["unpruned"]["answer"], wanted["pruned"]["answer"]]
    rows = [row.all_inner_texts() for row in map(lambda r: r.locator("th, td"), page.locator("tbody tr:visible").all())]
    table = {name: cells for name, *cells in rows}
    assert table["visual tokens"] == ["144", "36", "× 0.25"]
    assert table["KV cache, bytes"][:2] == [f"{wanted[side]['kv_bytes']:,}" for side in ("unpruned", "pruned")]
    assert all(float(cell) > 0 for cell in table["prefill, ms"][:2])
    assert page.get_by_text(f"{100 * wanted['comparison']['agreement']:.1f} %", exact=True).is_visible()
    assert kept(page).is_visible() and stop(page).is_disabled()
    fits(page)
    keep(page, f"image_{size}")


def test_the_slider_selects_again_while_it_moves_and_asks_when_it_is_let_go(visit):
    page = visit()
    slider = page.get_by_role("slider").locator("visible=true")
    box = slider.bounding_box()
    x, y = box["x"] + 0.235 * box["width"], box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 0.3 * box["width"], y, steps=3)
    n = round(144 * float(slider.input_value()))
    page.get_by_alt_text(re.compile(f"^Kept {n} of 144")).wait_for()
    assert page.get_by_text(re.compile(r"The answers are those of keep ratio 0\.25")).is_visible()
    page.mouse.up()
    page.get_by_text(f"With {n} kept by fastv").wait_for()
    settle(page)
    # by keyboard too: the picture follows at once, the answers when they are asked for
    slider.focus()
    slider.press("ArrowLeft")
    fewer = page.get_by_alt_text(re.compile(f"^Kept {round(144 * float(slider.input_value()))} of 144"))
    fewer.wait_for()
    ask = page.get_by_role("button", name="Ask", exact=True).locator("visible=true")
    ask.focus()
    ask.press("Enter")
    page.get_by_text(f"With {round(144 * float(slider.input_value()))} kept by fastv").wait_for()


def test_another_policy_another_question_and_a_click_on_a_cell(visit, keep, asked):
    """Oracle: the trace of the same question without a page."""
    page, trace = visit(), asked("transprune", 0.25).trace
    # only the last of several choices is answered
    choose(page, "Policy", "random")
    choose(page, "Policy", "transprune")
    page.get_by_text(f"With {trace.left} kept by transprune").wait_for()
    settle(page)
    figures = page.locator(".vt-figures:visible figure")
    assert figures.all_inner_texts() == [f"{stop.name}: {len(stop.rows)} of 144" for stop in trace.stops]
    box = kept(page).bounding_box()
    for row, column in ((0, 0), (4, 8), (11, 11)):
        kept(page).click(position={"x": box["width"] * (column + 0.5) / 12, "y": box["height"] * (row + 0.5) / 12})
        first, *more = story(trace, row, column)
        page.get_by_text(first, exact=True).wait_for()
        assert all(page.get_by_text(one, exact=True).is_visible() for one in more)
        place = [page.get_by_label(name).locator("visible=true").input_value() for name in ("Row", "Column")]
        assert place == [str(row + 1), str(column + 1)]
    keep(page, "image_sites")
    question = page.get_by_label("Question", exact=True).locator("visible=true")
    question.fill("How many objects are there?")
    question.press("Enter")
    page.wait_for_function("() => document.querySelector('.vt-card .vt-said').textContent.trim().startsWith('6')")


def test_a_picture_of_ones_own_and_a_file_that_is_none(visit, tmp_path):
    """Oracle: the picture's colours: what the model sees of it is still these two halves."""
    page = visit()
    halves = np.zeros((200, 200, 3), np.uint8)
    halves[:, :100], halves[:, 100:] = (220, 30, 30), (30, 30, 220)
    Image.fromarray(halves).save(tmp_path / "halves.png")
    (tmp_path / "none.png").write_bytes(b"<script>alert(1)</script>")
    page.get_by_role("button", name="Upload a picture").locator("visible=true").click()
    shown = page.get_by_alt_text("The picture as the model sees it")
    before = shown.get_attribute("src")
    chosen = page.locator("input[type=file]").first
    chosen.set_input_files(tmp_path / "none.png")
    page.get_by_text(re.compile(r"^none\.png is no picture of a known format")).wait_for()
    assert shown.get_attribute("src") == before and len(answers(page)) == 2
    page.get_by_role("button", name="Clear").locator("visible=true").first.click()
    chosen.set_input_files(tmp_path / "halves.png")
    page.wait_for_function("src => document.querySelector('img[alt^=\"The picture as\"]').src != src", arg=before)
    with Image.open(io.BytesIO(page.request.get(shown.get_attribute("src")).body())) as picture:
        seen = np.asarray(picture.convert("RGB")).astype(int)
    assert np.abs(seen[300, 60] - (220, 30, 30)).max() < 12 and np.abs(seen[300, -60] - (30, 30, 220)).max() < 12


def test_long_work_is_stopped(visit, monkeypatch):
    """Oracle: the rounds that were begun: whoever stops in the first of three gets no third."""
    page, rounds, real = visit(), [], study.time_trials

    def slow(*some, **more):
        rounds.append(time.monotonic())
        time.sleep(1.5)
        return real(*some, **more)

    monkeypatch.setattr(study, "time_trials", slow)
    page.get_by_role("button", name="Ask", exact=True).locator("visible=true").click()
    page.get_by_role("progressbar", name="measuring, round 1 of 3").wait_for()
    stop(page).click()
    page.get_by_text("Stopped.", exact=True).wait_for()
    settle(page)
    time.sleep(4)
    assert 1 <= len(rounds) <= 2 and page.get_by_text("Stopped.", exact=True).is_visible()


def test_a_batch_is_stopped(visit, engine):
    """Oracle: the model: after the stop nobody asks it; and not all questions were counted."""
    page = visit()
    page.get_by_role("tab", name="Batch").click()
    page.get_by_role("button", name="Run", exact=True).click()
    page.get_by_role("progressbar", name=re.compile("(16|32|48) of 64 questions")).wait_for()
    assert page.locator(".vt-plot.wide:visible circle").count() >= 3
    stop(page).click()
    page.get_by_text("Stopped.", exact=True).wait_for()
    settle(page)
    calls = []
    with engine.use("image") as loaded:
        handle = loaded.model.register_forward_pre_hook(lambda *ignored: calls.append(1))
    # what was under way may end
    time.sleep(1)
    until = len(calls)
    time.sleep(1)
    handle.remove()
    assert len(calls) == until and page.get_by_text("Stopped.", exact=True).is_visible()
    counted = re.search(r"\d+ of (\d+)", page.locator(".vt-nums:visible").inner_text())
    assert int(counted[1]) < 64


def test_a_clip_and_its_budget(visit, keep):
    """Oracle: the counts below the panels add up to what the line says."""
    page = visit()
    page.get_by_role("tab", name="Video").click()
    page.locator("button.primary:visible").click()
    page.get_by_text("The same budget, spent on other numbers of frames").wait_for()
    settle(page)
    counts = [text.split("/") for text in page.locator(".vt-figures.small b:visible").all_inner_texts()]
    (line,) = re.findall(r"Kept (\d+) of (\d+) visual tokens", page.locator(".vt-line:visible").inner_text())
    assert tuple(str(sum(int(one[i]) for one in counts)) for i in (0, 1)) == line and len(counts) == 16
    assert page.locator(".vt-bars g").count() == 16 and len(answers(page)) == 2
    keep(page, "video_desktop")


@pytest.mark.slow  # every tab in both widths, light and dark, for people to look at
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_every_tab_fits_and_is_kept_to_be_looked_at(visit, keep, size, scheme):
    page = visit(size, scheme)
    keep(page, f"image_{size}_{scheme}")
    for tab, done in (
        ("Video", r"Kept \d+ of 256"),
        ("Compare", "8 of 8, the nearest to the full model first"),
        ("Batch", "64 of 64 questions."),
    ):
        page.get_by_role("tab", name=tab).click()
        page.locator("button.primary:visible").click()
        page.get_by_text(re.compile(done)).wait_for(timeout=240_000)
        settle(page)
        fits(page)
        keep(page, f"{tab.lower()}_{size}_{scheme}")


@pytest.mark.slow  # eight answers; test_app.py has two visitors without a browser
def test_two_visitors_at_once(visit):
    one, other = visit(), visit()
    choose(one, "Policy", "random")
    choose(other, "Policy", "pool")
    choose(one, "Example", "scene 3")
    choose(other, "Example", "scene 4")
    for page, name in ((one, "random"), (other, "pool")):
        page.get_by_text(f"With 36 kept by {name}").wait_for()
        settle(page)
    assert [page.get_by_label("Example").first.input_value() for page in (one, other)] == ["scene 3", "scene 4"]
    sources = [page.get_by_alt_text("The picture as the model sees it").get_attribute("src") for page in (one, other)]
    pictures = [one.request.get(source).body() for source in sources]
    assert pictures[0] != pictures[1]
