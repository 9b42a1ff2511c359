"""Two made-up runs compared: on common questions alone, paired, and refused where they did not ask the same."""

import numpy as np
import pytest

from tests.bench import synthetic
from vtprune.bench import compare
from vtprune.bench.condition import Condition

ASKED = [Condition("full"), Condition("policy", "fastv", keep_ratio=0.25), Condition("policy", "tome", keep_ratio=0.25)]


def cells(text, start):
    line = next(line for line in text.splitlines() if line.startswith(f"| {start} "))
    return [cell.strip() for cell in line.strip("|").split("|")]


@pytest.fixture
def rows():
    return synthetic.rows(ASKED, pictures=40)


def test_common_questions_are_paired(rows, tmp_path):
    """Oracle: the two rows' scores, matched by question with dictionaries. B has them in another order."""
    second = synthetic.rows(ASKED, pictures=40, seed=1)[::-1]
    second = [row for row in second if int(row["question"][1:]) < 90]
    one, other = synthetic.write(tmp_path / "a", ASKED, rows), synthetic.write(tmp_path / "b", ASKED, second)
    text = compare.command(one, other)
    a, b = ({r["question"]: r["score"] for r in some if r["row"] == "fastv@0.25"} for some in (rows, second))
    found = cells(text, "fastv@0.25")
    assert found[1:3] == ["90", "30"]
    assert found[3:5] == [f"{100 * np.mean([side[q] for q in b]):.1f}" for side in (a, b)]
    difference = 100 * np.mean([b[q] - a[q] for q in b])
    assert found[5].replace("\N{MINUS SIGN}", "-").startswith(f"{difference:+.1f} (")
    assert found[6] == f"{sum(a[q] > b[q] for q in b)} / {sum(b[q] > a[q] for q in b)}"
    assert "90 questions are in both; A has 120, B 90." in text


def test_chosen_rows(rows, tmp_path):
    one = synthetic.write(tmp_path / "a", ASKED, rows)
    text = compare.command(one, one, ["full vs tome@0.25", "fastv@0.25"])
    assert cells(text, "fastv@0.25")[5] == "0.0 (0.0 to 0.0)" and cells(text, "fastv@0.25")[8] == "not told apart"
    assert cells(text, "full vs tome@0.25")[8].startswith("**worse**")
    assert not any(line.startswith("| full |") for line in text.splitlines())
    with pytest.raises(ValueError, match="B has no row 'fastv@0.3' of made-up; it has full, fastv@0.25"):
        compare.command(one, one, ["full vs fastv@0.3"])


def test_revisions_must_agree(rows, tmp_path):
    one = synthetic.write(tmp_path / "a", ASKED, rows)
    other = synthetic.write(tmp_path / "b", ASKED, rows, revision=lambda task: "d" * 16)
    with pytest.raises(ValueError, match=r"revision differs of made-up \(A a{16}, B d{16}\).*--force"):
        compare.command(one, other)
    assert "was" in compare.command(one, other, force=True)


def test_what_may_not_be_compared(rows, tmp_path):
    one = synthetic.write(tmp_path / "a", ASKED, rows)
    lazy = [row | {"after": 144} if row["row"] == "fastv@0.25" else row for row in rows]
    text = compare.command(one, synthetic.write(tmp_path / "b", ASKED, lazy))
    assert cells(text, "fastv@0.25")[8].startswith("**refused in B: no visual token was dropped")
    assert not any(cells(text, "fastv@0.25")[1:8]) and cells(text, "tome@0.25")[1] == "120"
    other = [row | {"task": "another"} for row in rows]
    with pytest.raises(ValueError, match="no task is in both: .* has made-up; .* has another"):
        compare.command(one, synthetic.write(tmp_path / "c", ASKED, other))
    less = [Condition("policy", "pool", keep_ratio=0.5)]
    with pytest.raises(ValueError, match="no row is in both; choose two.*B has pool@0.5"):
        compare.command(one, synthetic.write(tmp_path / "d", less, synthetic.rows(less, pictures=40)))


def test_other_prompts_and_settings_are_told(rows, tmp_path):
    one = synthetic.write(tmp_path / "a", ASKED, rows)
    changed = [row | {"prompt": "f" * 16} if row["question"] in ("q1", "q2") else row for row in rows]
    other = synthetic.write(tmp_path / "b", ASKED, changed)
    run = (other / "run.json").read_text().replace('"frames": 32', '"frames": 8')
    (other / "run.json").write_text(run)
    text = compare.command(one, other)
    assert "2 of 120 prompts differ" in cells(text, "full")[8]
    assert "setting frames: was 32, is 8" in text
