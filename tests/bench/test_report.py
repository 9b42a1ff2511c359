"""The report of a made-up run: read again as a reader would, and its plots for what they must show."""

import json
import re
import sys
from html.parser import HTMLParser

import pytest

from tests.bench import synthetic
from vtprune.bench import report
from vtprune.bench.document import Cell, Code, Heading, Table, Text, between, per_cent, signed
from vtprune.bench.drawing import apart
from vtprune.bench.html import html
from vtprune.bench.markdown import markdown
from vtprune.bench.plot_cost import plot_cost
from vtprune.bench.plot_labels import plot_labels
from vtprune.bench.plot_tokens import plot_tokens
from vtprune.bench.result_folder import read_results
from vtprune.bench.result_tables import break_even_table
from vtprune.bench.series import Point, by_time, by_tokens, front, series
from vtprune.bench.summary import summarize

pytest.importorskip("matplotlib")

EVIL = "<script>alert('x')</script> | `a` **b** [c](javascript:d)\n# e \u202e"
ASKED = synthetic.conditions(ratios=(0.25, 0.1))


class Page(HTMLParser):
    """Tags, attributes and words of a page in which every tag is closed."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.words, self.opened = [], [], [], []
        self.feed(text)
        assert self.opened == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in ("meta", "img"):
            self.opened.append(tag)

    def handle_endtag(self, tag):
        assert self.opened.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """pool never pruned at a tenth; fastv's wrong answers at a quarter try to be more than words."""
    rows = synthetic.rows(ASKED, pictures=20)
    for row in rows:
        row["after"] = 144 if row["condition"] == "pool@0.1" else row["after"]
        row["raw"] = EVIL if row["condition"] == "fastv@0.25" and not row["correct"] else row["raw"]
    return synthetic.write(tmp_path_factory.mktemp("run"), ASKED, rows, times=synthetic.times(ASKED))


@pytest.fixture(scope="module")
def written(folder):
    return report.command(folder)


@pytest.fixture(scope="module")
def task(folder):
    return summarize(read_results(folder))["tasks"]["made-up"]


def test_the_files(folder, written):
    names = [path.relative_to(folder).as_posix() for path in written]
    assert names == [
        "report.html",
        "report.md",
        "summary.json",
        "plots/1-made-up-tokens.png",
        "plots/1-made-up-cost.png",
        "plots/1-made-up-0-kind.png",
    ]
    assert all(path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" for path in written[3:])
    summary = json.loads(written[2].read_text())
    assert summary["tasks"]["made-up"]["rows"]["fastv@0.25"]["n"] == 60


def test_html_needs_nothing_and_runs_nothing(written):
    page = Page(written[0].read_text(encoding="utf-8"))
    assert "script" not in page.tags and "link" not in page.tags
    sources = [value for name, value in page.attributes if name in ("src", "href")]
    assert sources and all(value.startswith(("data:image/png;base64,", "#h")) for value in sources)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    text = " ".join(page.words)
    # an answer is shown as it is, but what would turn the line around
    assert "<script>alert('x')</script> | `a` **b** [c](javascript:d) # e \ufffd" in text
    assert page.tags.count("img") == 3


def test_the_numbers_of_the_summary_are_in_the_table(written, task):
    """Oracle: the cells of the page's first table against the summary."""
    cells = re.findall(r"<td[^>]*>(?:<span[^>]*>)?([^<]*)", written[0].read_text(encoding="utf-8"))
    start = cells.index("divprune@0.1")
    row = task["rows"]["divprune@0.1"]
    assert cells[start + 1 : start + 3] == ["60", "9.7"] and cells[start + 3].startswith(f"{100 * row['score']:.1f} (")
    assert cells[start + 4].replace("\N{MINUS SIGN}", "-").startswith(f"{100 * row['to_full']['difference']:+.1f} (")
    test = row["to_full"]["test"]
    assert cells[start + 5] == f"{test['right_to_wrong']} / {test['wrong_to_right']}"


def test_a_refused_row_says_why_and_nothing_else(written):
    markdown = written[1].read_text(encoding="utf-8")
    line = next(line for line in markdown.splitlines() if "pool@0.1 refused" in line)
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert "no visual token was dropped: 8,640 of 8,640" in cells[0]
    assert cells[1:3] == ["60", "9.7"] and not any(cells[3:])
    assert "Refused, because it was not shown that they prune: pool@0.1." in markdown


def test_markdown_tables_hold_together(written):
    """Oracle: every line of a table has as many cells as its head, however an answer was written."""
    width = None
    for line in written[1].read_text(encoding="utf-8").splitlines():
        cells = len(re.findall(r"(?<!\\)\|", line)) if line.startswith("|") else None
        assert cells is None or width is None or cells == width, line
        width = cells


def test_conclusions_are_those_of_the_intervals(written, task):
    text = written[1].read_text(encoding="utf-8")
    found = task["ratios"]["0.1"]
    assert f"10 % kept: the best is {found['best']}" in text
    better = [n for n in ("fastv@0.1", "divprune@0.1") if task["rows"][n]["to_random"]["verdict"] == "better"]
    assert better and f"better than random tokens: {' and '.join(better)}" in text


def test_examples_are_questions_that_were_lost(folder, written):
    """Oracle: the rows, counted and matched by hand."""
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    full, pruned = ({row["question"]: row for row in rows if row["row"] == name} for name in ("full", "divprune@0.25"))
    lost = [question for question, row in full.items() if row["correct"] and not pruned[question]["correct"]]
    text = written[1].read_text(encoding="utf-8")
    start = text.index(f"divprune@0.25: {len(lost)} questions lost")
    shown = re.findall(r"^\| (q\d+) \|", text[start:], re.MULTILINE)
    assert 0 < len(shown) <= 4 and set(shown) <= set(lost)
    # of different pictures
    assert len({full[question]["cluster"] for question in shown}) == len(shown)


def test_break_even():
    """Oracle: full takes 10 + 0.1 n ms, pruned 20 + 0.02 n; they meet at 125 tokens. The other is never sooner."""
    took = {"full": (10, 0.1), "fastv@0.5": (20, 0.02), "slow@0.5": (20, 0.2)}
    times = [
        {"condition": name, "row": name, "copies": n // 100, "tokens": [[n, n]], "ttft_ms": {"median": a + b * n}}
        for n in (100, 200)
        for name, (a, b) in took.items()
    ]
    table = break_even_table(times)
    assert [[cell.text for cell in row] for row in table.rows] == [["fastv@0.5", "125"], ["slow@0.5", "never"]]
    assert break_even_table([]) is None


def test_without_plots_matplotlib_is_not_needed(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert [path.name for path in report.command(folder, tmp_path, plots=False)] == [
        "report.html",
        "report.md",
        "summary.json",
    ]
    with pytest.raises(ImportError, match=r"pip install 'vtprune\[bench\]'"):
        report.command(folder, tmp_path)


def test_the_tokens_plot_has_the_scores(task):
    """Oracle: the summary; the band is random's interval, the refused row is nowhere."""
    axes = plot_tokens("made-up", task).axes[0]
    rows = task["rows"]
    points = {tuple(round(y, 6) for y in line.get_ydata()) for line in axes.lines}
    for name in ("fastv", "divprune", "random", "uniform", "downsampled"):
        assert tuple(round(100 * rows[f"{name}@{ratio}"]["score"], 6) for ratio in (0.1, 0.25)) in points
        assert any(text.get_text() == name for text in axes.texts)
    assert (round(100 * rows["pool@0.25"]["score"], 6),) in points
    band = axes.collections[0].get_paths()[0].vertices[:, 1]
    low, high = rows["random@0.1"]["interval"]
    assert min(band) <= 100 * low + 1e-9 and max(band) >= 100 * high - 1e-9


def words_alone(text):
    """The box of a text without the line that leads to it."""
    from matplotlib.text import Text as Words

    text.get_window_extent()  # puts the words of an annotation where they belong
    return Words.get_window_extent(text)


def test_no_label_lies_on_another(task):
    """Oracle: the boxes of the words as they are drawn; the thin lines that lead to some may cross."""
    for figure in (plot_tokens("made-up", task), plot_cost("made-up", task)):
        figure.draw_without_rendering()
        whole = figure.bbox
        for axes in figure.axes:
            boxes = [words_alone(text).shrunk(1, 0.9) for text in axes.texts]
            clash = [(i, j) for i, one in enumerate(boxes) for j, other in enumerate(boxes[:i]) if one.overlaps(other)]
            assert len(boxes) > 4 and clash == [], [axes.texts[i].get_text() for pair in clash for i in pair]
            assert min(box.x0 for box in boxes) > -1 and max(box.x1 for box in boxes) < whole.x1 + 1


def test_many_policies_have_panels_of_their_own(tmp_path):
    many = synthetic.conditions(("fastv", "divprune", "visionzip", "tome", "scope", "mmtok"), ratios=(0.25,))
    where = synthetic.write(tmp_path, many, synthetic.rows(many, pictures=6))
    task = summarize(read_results(where))["tasks"]["made-up"]
    titles = [axes.get_title(loc="left") for axes in plot_tokens("made-up", task).axes if axes.get_visible()]
    # policies, the best first; then the controls but random, which is the band
    assert sorted(titles[:6]) == ["divprune", "fastv", "mmtok", "scope", "tome", "visionzip"]
    assert titles[6:] == ["uniform", "pool", "downsampled"]


def test_the_heat_map_has_the_differences(task):
    figure = plot_labels("made-up", task, "kind")
    words = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    shown = figure.axes[0].images[0].get_array()
    row = task["rows"]["fastv@0.25"]
    kinds = sorted(synthetic.KINDS)
    differences = [row["to_full"]["difference"], *(row["labels"]["kind"][kind]["to_full"] for kind in kinds)]
    assert shown[words.index("fastv")].tolist() == pytest.approx([100 * one for one in differences])
    assert "pool" in words and "pool" not in [text.get_text() for text in figure.axes[1].get_yticklabels()]
    assert plot_labels("made-up", task, "nothing") is None


def test_costs(task):
    """Oracle: the generator's tokens and times."""
    assert by_tokens(task)["fastv@0.25"] == 25 and "blind" not in by_tokens(task)
    times, batch = by_time(task)
    assert batch == 1 and times["fastv@0.25"] == pytest.approx(12 + 0.8 + 8 + 30 * 0.25)
    lines = series(task, times)
    assert [line.name for line in lines[2:]] == ["random", "uniform", "pool", "downsampled"]
    assert {line.name for line in lines[:2]} == {"fastv", "divprune"}


def test_front():
    """Oracle: no other point is as cheap and better, by trying all."""
    points = [
        Point(str(i), 0.5, x, y, y, y) for i, (x, y) in enumerate([(1, 5), (1, 4), (2, 5), (3, 9), (4, 7), (9, 10)])
    ]
    beaten = [
        one
        for one in points
        if any(o.x <= one.x and o.score >= one.score and (o.x, o.score) != (one.x, one.score) for o in points)
    ]
    assert [one.row for one in front(points)] == [one.row for one in points if one not in beaten] == ["0", "3", "5"]


def test_labels_move_apart():
    assert apart([5.0, 1.0, 9.0], 2.0) == [5.0, 1.0, 9.0]
    assert apart([1.0, 1.0], 2.0) == [0.0, 2.0]
    found = apart([3.0, 3.1, 3.2, 10.0], 1.0)
    assert found == pytest.approx([2.1, 3.1, 4.1, 10.0])


def test_numbers():
    assert (per_cent(0.77149), per_cent(None), signed(-0.0004), signed(-0.0123)) == (
        "77.1",
        "",
        "0.0",
        "\N{MINUS SIGN}1.2",
    )
    assert between((0.71, -0.02)) == " (71.0 to \N{MINUS SIGN}2.0)" and between(None) == ""
    assert between((-0.01, 0.02), sign=True) == " (\N{MINUS SIGN}1.0 to +2.0)"


def test_text_means_itself():
    blocks = [Heading(1, EVIL), Text(EVIL), Code("a ``` b"), Table([EVIL], [[Cell(EVIL, "good")]])]
    text = markdown(blocks)
    assert "<script>" not in text.replace("\\<", "") and "\n````\na ``` b\n````\n" in text
    page = Page(html(EVIL, blocks, {}))
    assert "script" not in page.tags and page.words.count(EVIL) == 5
