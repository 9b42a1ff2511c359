"""What a visitor does: uploads, moves the slider, switches policy, reads answers, clicks a cell, stops a batch."""

import re

import pytest
from PIL import Image

from vtprune.embedded.scenes import make_scene

DESKTOP, PHONE = (1280, 1000), (390, 844)


def answers(page) -> list[str]:
    """Both answers that stand on the page."""
    return [text.split()[0] for text in page.locator(".vt-said:visible").all_inner_texts()]


def settle(page) -> None:
    """Until no event of the page is under way."""
    page.wait_for_function("() => !document.querySelector('.wrap.generating, .wrap.pending, .progress-text')")


def test_a_newcomer_sees_both_answers_at_once(visit, keep):
    page = visit(*DESKTOP)
    assert len(answers(page)) == 2
    assert page.get_by_alt_text(re.compile("^Kept 36 of 144")).is_visible()
    keep(page, "image_desktop")


def test_a_phone_shows_everything_in_one_column(visit, keep):
    page = visit(*PHONE)
    wide = page.evaluate("() => document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide <= 0, f"the page is {wide} pixels wider than a phone"
    assert len(answers(page)) == 2
    keep(page, "image_phone")


def test_a_picture_is_uploaded_and_asked_about(visit, tmp_path):
    page = visit(*DESKTOP)
    path = tmp_path / "own.png"
    make_scene(77, "test").image.resize((192, 192), Image.Resampling.NEAREST).save(path)
    page.get_by_role("button", name=re.compile("Your own picture")).first.click()
    with page.expect_response(re.compile("/upload")):
        page.locator("input[type=file]").first.set_input_files(path)
    settle(page)
    assert len(answers(page)) == 2


def test_the_slider_selects_again_and_the_policy_changes_its_controls(visit, keep):
    page = visit(*DESKTOP)
    slider = page.get_by_role("slider", name=re.compile("Keep ratio")).first
    slider.focus()
    slider.press("ArrowRight")
    page.get_by_text(re.compile(r"Kept 37 of 144")).first.wait_for(timeout=20_000)
    page.get_by_label("Policy", exact=True).first.click()
    page.get_by_role("option", name="transprune").click()
    page.get_by_text("Which tokens survive to which layer").first.wait_for(timeout=30_000)
    keep(page, "image_sites")


def test_a_click_on_a_cell_tells_its_story(visit):
    page = visit(*DESKTOP)
    picture = page.get_by_alt_text(re.compile("^Kept 36 of 144"))
    box = picture.bounding_box()
    picture.click(position={"x": box["width"] / 2, "y": box["height"] / 2})
    story = page.get_by_text(re.compile(r"Row \d+, column \d+: visual token \d+ of 144"))
    story.wait_for(timeout=20_000)


def test_a_batch_is_stopped(visit, keep):
    page = visit(*DESKTOP)
    page.get_by_role("tab", name="Batch").click()
    page.get_by_role("button", name="Run", exact=True).click()
    page.get_by_text(re.compile(r"\d+ of 64 questions")).wait_for(timeout=60_000)
    keep(page, "batch_desktop")
    page.locator("button:visible", has_text="Stop").click()
    page.get_by_text("Stopped.").wait_for(timeout=20_000)


@pytest.mark.parametrize(("name", "size"), [("desktop", DESKTOP), ("phone", PHONE)])
def test_the_other_tabs(visit, keep, name, size):
    page = visit(*size)
    for tab, button, done in (
        ("Video", "Ask both", r"Kept \d+ of 256"),
        ("Compare", "Compare", "the nearest to the full model first"),
    ):
        page.get_by_role("tab", name=tab).click()
        page.locator("button:visible", has_text=re.compile(f"^{button}$")).click()
        page.get_by_text(re.compile(done)).wait_for(timeout=120_000)
        keep(page, f"{tab.lower()}_{name}")
