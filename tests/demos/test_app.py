"""The page through its API: what every button does, two users at once, and files that mean no good."""

import re
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

gradio = pytest.importorskip("gradio", reason="needs gradio: pip install 'vtprune[demo]'")
from gradio_client import Client, handle_file  # noqa: E402
from gradio_client.exceptions import AppError  # noqa: E402

import vtprune  # noqa: E402
from vtprune.draw import heat_map, overlay  # noqa: E402

QUESTION = "Which digit is cyan?"

REACHED: list[tuple] = []
"""Every host that this process looked up or connected to; such a hook cannot be removed, so it stays in one list."""

sys.addaudithook(
    lambda event, args: (
        REACHED.append((event, args[-1] if event == "socket.connect" else args))
        if event in ("socket.connect", "socket.getaddrinfo")
        else None
    )
)


@pytest.fixture(scope="module")
def page(engine):
    from vtprune.demo.page.app import build, launch

    built = build(engine)
    address = launch(built)
    yield built, address
    built.close()


def visitor(address: str) -> Client:
    """A client that opens the server's files in place, which is cheaper than fetching each."""
    return Client(address, verbose=False, analytics_enabled=False, download_files=False)


@pytest.fixture
def client(page):
    return visitor(page[1])


def ask(client, name="fastv", ratio=0.25, options="layer=3", question=QUESTION):
    names = ("line", "original", "heat", "kept", "scale", "sites", "answers", "story")
    return dict(zip(names, client.predict(question, name, ratio, options, api_name="/image_ask"), strict=True))


def file_of(update) -> Path:
    return Path(update.get("value", update)["path"])


def pixels(update) -> np.ndarray:
    with Image.open(file_of(update)) as picture:
        return np.asarray(picture.convert("RGB"))


def said(html: str) -> list[str]:
    return re.findall(r'class="vt-said">(\w+)', html)


def test_both_answers_their_numbers_and_pictures(client, asked):
    """Oracle: the same question without a page."""
    found, wanted = ask(client), asked("fastv", 0.25)
    values = wanted.values
    assert said(found["answers"]) == [values["unpruned"]["answer"], values["pruned"]["answer"]]
    assert f"{values['pruned']['kv_bytes']:,}" in found["answers"]
    assert (
        f"{100 * values['comparison']['agreement']:.1f} %" in found["answers"]
        and "medians of 3 runs" in found["answers"]
    )
    assert "36 of 144" in found["line"] and "from layer 3 on" in found["line"]
    seen = wanted.study.seen
    assert np.array_equal(pixels(found["kept"]), np.asarray(overlay(seen, wanted.trace.kept()[0])))
    assert np.array_equal(pixels(found["heat"]), np.asarray(heat_map(seen, wanted.trace.heat())))
    assert found["kept"]["alt_text"].startswith("Kept 36 of 144")


def test_moving_the_ratio_changes_the_picture_and_says_that_answers_are_old(client, asked):
    ask(client)
    line, _, kept, *_ = client.predict("fastv", 0.5, "layer=3", api_name="/image_reselect")
    assert "72 of 144" in line and "stale" in line and "keep ratio 0.25" in line
    wanted = asked("fastv", 0.5)
    assert np.array_equal(pixels(kept), np.asarray(overlay(wanted.study.seen, wanted.trace.kept()[0])))
    line, *_ = client.predict("fastv", 0.25, "layer=3", api_name="/image_reselect")
    assert "stale" not in line
    line, *_ = client.predict("random", 0.5, "", api_name="/image_reselect")
    assert "stale" in line and "the scores are those of fastv; ask random first" in line


def test_a_cell_tells_its_story(client, asked):
    with pytest.raises(AppError, match="ask a question first"):
        client.predict(1, 1, api_name="/image_inspect")
    ask(client, "transprune", 0.25, "")
    story, *_ = client.predict(3, 4, api_name="/image_inspect")
    assert "Row 3, column 4: visual token 28 of 144" in story and "rank" in story and "layer 1" in story
    with pytest.raises(AppError, match="rows 1 to 12"):
        client.predict(13, 1, api_name="/image_inspect")


def test_policies_bring_their_controls(client):
    slider, about, options, *slots = client.predict("idpruner", 0.25, api_name="/image_policy")
    shown = {slot["label"]: slot for slot in slots if slot.get("visible")}
    assert "marginal relevance" in about or "cosine" in about
    assert {"trade_off", "parallel_k", "importance", "budget", "compat"} == set(shown) and options == ""
    assert (shown["trade_off"]["minimum"], shown["trade_off"]["maximum"], shown["trade_off"]["value"]) == (0, 1, 0.5)
    assert slider["interactive"] and (slider["minimum"], slider["value"]) == (0.02, 0.25)
    values = [slot.get("value") for slot in slots]
    values[[slot["label"] for slot in slots].index("trade_off")] = 0.75
    assert client.predict("idpruner", *values, api_name="/image_options") == "trade_off=0.75"
    # what a policy does not take cannot be chosen
    assert not client.predict("none", 0.25, api_name="/image_policy")[0]["interactive"]
    slider = client.predict("dycoke", 0.1, api_name="/image_policy")[0]
    with pytest.raises(ValueError, match="keep_ratio"):
        vtprune.POLICIES["dycoke"](keep_ratio=slider["minimum"] - 0.01)
    assert slider["value"] == vtprune.POLICIES["dycoke"](keep_ratio=slider["minimum"]).keep_ratio


def test_two_users_do_not_disturb_each_other(page):
    """Oracle: each gets what it would get alone, while they take turns and ask at once."""
    one, other = visitor(page[1]), visitor(page[1])
    one.predict("scene 3", api_name="/image_example")
    other.predict("scene 4", api_name="/image_example")
    alone = [pixels(ask(user, question="How many objects are there?")["original"]) for user in (one, other)]
    assert not np.array_equal(*alone)
    jobs = [
        user.submit("How many objects are there?", name, ratio, "", api_name="/image_ask")
        for user, name, ratio in (
            (one, "random", 0.5),
            (other, "pool", 0.25),
            (one, "random", 0.5),
            (other, "pool", 0.25),
        )
    ]
    for i, job in enumerate(jobs):
        line, original, *_ = job.result(timeout=60)
        assert np.array_equal(pixels(original), alone[i % 2])
        assert ("72 of 144", "36 of 144")[i % 2] in line
    # what each sees next is about its own question
    assert "14 of 144" in one.predict("random", 0.1, "", api_name="/image_reselect")[0]
    assert "those of pool" in other.predict("random", 0.1, "", api_name="/image_reselect")[0]


def test_a_file_of_ones_own(client, tmp_path):
    """Oracle: the picture's colours, cropped and resized by the model's processor, are still these two halves."""
    halves = np.zeros((200, 200, 3), np.uint8)
    halves[:, :100], halves[:, 100:] = (220, 30, 30), (30, 30, 220)
    path = tmp_path / "halves.png"
    Image.fromarray(halves).save(path)
    client.predict(handle_file(path), api_name="/image_load")
    seen = pixels(ask(client, question="How many objects are there?")["original"]).astype(int)
    assert np.abs(seen[300, 60] - (220, 30, 30)).max() < 12 and np.abs(seen[300, -60] - (30, 30, 220)).max() < 12


@pytest.mark.parametrize(("name", "endpoint", "more"), [("x.png", "/image_load", ()), ("x.mp4", "/video_load", (8,))])
def test_hostile_files_get_the_command_lines_message(client, tmp_path, name, endpoint, more):
    for content in (b"", b"<script>alert(1)</script>", bytes(range(256)) * 40):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(AppError) as caught:
            client.predict(handle_file(path), *more, api_name=endpoint)
        text = str(caught.value)
        assert name in text and "Traceback" not in text and "/tmp" not in text and "\n" not in text
    with pytest.raises(AppError, match="an example is"):
        client.predict("../../etc/passwd", *more, api_name=endpoint.replace("load", "example"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"question": " "}, "the question is in words"),
        ({"options": "layer=99"}, "this decoder has layers 0 to 5"),
        ({"options": "scorer=/etc/passwd"}, "scorer"),
        ({"options": "layer=<img src=x>"}, "&lt;img src=x&gt;"),
        ({"name": "nope"}, "nope"),
        ({"ratio": 0}, "minimum"),
    ],
)
def test_wrong_questions_and_options_are_explained(client, change, message):
    with pytest.raises(AppError, match=re.escape(message)):
        ask(client, **change)


def test_a_mistake_stays_on_the_page_when_its_message_is_gone(client):
    job = client.submit(QUESTION, "fastv", 0.25, "layer=99", api_name="/image_ask")
    with pytest.raises(AppError, match="layers 0 to 5"):
        job.result(timeout=60)
    assert "stale" in job.outputs()[-1][0] and "this decoder has layers 0 to 5" in job.outputs()[-1][0]


@pytest.mark.parametrize(
    ("said", "right", "sign"),
    [
        ("5", "5", "✓"),
        ("Yes.", "yes", "✓"),
        ("four", "5", "✗"),
        ("", "5", "✗"),
        # whether a sentence is right, a word does not tell
        ("It is not 5, but 6.", "5", ""),
        ("It is 6.", "5", "✗"),
        ("5", None, ""),
    ],
)
def test_what_is_called_right(said, right, sign):
    from vtprune.demo.page.words import verdict

    assert "".join(re.findall("[✓✗]", verdict(said, right))) == sign


def test_what_users_and_models_say_is_text_not_html(client, asked):
    """A question's unknown words come back in a note; a model's answer, a name, an error of a policy go anywhere."""
    from vtprune.demo.grid import Cell
    from vtprune.demo.page import answers, compare_tab, words

    assert "&lt;img" in ask(client, question="What is <img src=x onerror=alert(1)> this?")["answers"]
    hostile, values = "<img src=x onerror=alert(1)>", dict(asked("fastv", 0.25).values)
    values["unpruned"] = {**values["unpruned"], "answer": hostile}
    values["pruned"] = {**values["pruned"], "answer": hostile, "notes": [hostile]}
    values["policy"] = {"name": hostile}
    cells = [Cell("fastv", 0.5, {}, error=hostile)]
    for html in (
        answers.answers(values),
        words.line(hostile),
        words.progress(0.5, hostile),
        compare_tab._figures(cells),
    ):
        assert "<img" not in html and "&lt;img" in html
    assert "&lt;img" in words.scale(0, 1, hostile) and "&lt;img" in words.table((hostile,), [(hostile,)], hostile)


def test_a_clip_its_sheet_and_its_bars(client):
    client.predict("clip 7", 16, api_name="/video_example")
    line, answers, clip, sheet, budget = client.predict(
        16, "How many different shapes appear?", "framefusion", 0.25, "", False, api_name="/video_ask"
    )
    assert re.search(r"Kept \d+ of 128 visual tokens", line) and len(said(answers)) == 2 and budget == ""
    assert pixels(sheet).shape[1] > 600
    # a panel for each of 8 steps, with words, and a bar; what they say adds up to what was kept
    alts = re.findall(r'alt="[\d:.]+: kept (\d+) of 16', clip)
    bars = re.search(r"kept by step: ([\d, ]+);", clip)[1].split(", ")
    assert alts == bars and len(bars) == 8 and f"Kept {sum(map(int, bars))} of 128" in line


def test_a_comparison_can_be_downloaded(client):
    import json

    job = client.submit(QUESTION, ["random", "pool"], [0.25], api_name="/compare")
    job.result(timeout=120)
    first, *steps = job.outputs()
    assert "reading" in first[0]
    assert [re.search(r"\d of 2", step[0])[0] for step in steps] == ["1 of 2", "2 of 2", "2 of 2"]
    _, grid, table, png, numbers = steps[-1]
    cells = json.loads(file_of(numbers).read_text())["cells"]
    assert len(cells) == 2 and pixels(png).shape[1] > 2 * 336
    assert re.findall(r"<b>(\w+)</b>", grid) == [cell["policy"]["name"] for cell in cells] and table.count("<tr>") == 3


def test_a_batch_grows_and_can_be_stopped(client, engine):
    """Oracle: after the stop no more questions are asked of the model."""
    job = client.submit(["random"], [0.25], 400, api_name="/batch")
    give_up = time.monotonic() + 60
    while len(job.outputs()) < 3 and time.monotonic() < give_up:
        time.sleep(0.1)
    assert [re.search(r"(\d+) of 400", step[0])[1] for step in job.outputs()[:3]] == ["0", "16", "32"]
    assert job.cancel()
    calls = []
    with engine.use("image") as loaded:
        handle = loaded.model.register_forward_pre_hook(lambda *ignored: calls.append(1))
    try:
        # what was under way may end
        time.sleep(2)
        until = len(calls)
        time.sleep(2)
        assert len(calls) == until
    finally:
        handle.remove()


def test_every_event_has_a_name_and_the_queue_a_limit(page):
    built, _ = page
    config = built.get_config_file()
    names = [event["api_name"] for event in config["dependencies"]]
    assert all(names) and len(set(names)) == len(names)
    assert built.max_size == 24 if hasattr(built, "max_size") else built._queue.max_size == 24
    assert not built.analytics_enabled and config["max_file_size"] == 64 * 2**20


def test_the_page_fetches_nothing_from_other_hosts(page):
    """Oracle: what a browser would load at once: scripts, styles, fonts and pictures that the page names."""
    import httpx

    address = page[1].rstrip("/")
    html = httpx.get(address + "/").text
    loaded = re.findall(r'<(?:script|img|iframe)[^>]*\bsrc="([^"]+)"', html)
    loaded += re.findall(r'<link[^>]*rel="(?:stylesheet|preload|modulepreload|icon|manifest)"[^>]*href="([^"]+)"', html)
    assert loaded and [url for url in loaded if re.match(r"(https?:)?//", url) and not url.startswith(address)] == []
    config = httpx.get(address + "/config").json()
    assert config["stylesheets"] == [] and not config["analytics_enabled"]
    theme = httpx.get(address + "/theme.css").text
    assert "system-ui" in theme and not re.search(r"url\(['\"]?(https?:)?//", theme)


def test_nothing_was_asked_of_another_host(client):
    """Oracle: Python's own record of connections and look-ups, from before the page was built, clients included."""
    ask(client)
    hosts = {place[0] for _, place in REACHED if isinstance(place, tuple) and place}
    hosts = {host.decode() if isinstance(host, bytes) else host for host in hosts}
    assert "127.0.0.1" in hosts and hosts <= {"127.0.0.1", "localhost", "::1", "0.0.0.0", None}


def test_every_picture_has_words(page):
    built, _ = page
    pictures = [block for block in built.blocks.values() if isinstance(block, gradio.Image)]
    assert len(pictures) == 3 and all(picture.alt_text for picture in pictures)
