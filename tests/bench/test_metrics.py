"""Metrics of open answers, boxes and yes or no. Oracle: published examples, values worked by hand, and brute force."""

import itertools
import re
from fractions import Fraction
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtprune.bench.metrics.anls import anls, edits
from vtprune.bench.metrics.box import iou, read_box
from vtprune.bench.metrics.relaxed import relaxed
from vtprune.bench.metrics.text import exact, normalized, singular, soft
from vtprune.bench.metrics.vqa import CONTRACTIONS, processed, vqa_accuracy
from vtprune.bench.metrics.yes_no import binary, read_yes_no


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("The Two dogs' red-ish balls, 1,000.5 kg!", "2 dogs red ish balls 1000.5 kg"),
        ("  A  Cat.\n", "cat"),
        ("Twenty-one", "20 1"),
        ("it's the man's", "its mans"),
        ("10:30, -5 (3-4)", "10:30 -5 3 4"),
        ("1,234,567 and 1,23", "1234567 and 1 23"),
        ("The.", "the"),
        ("A", "a"),
        ("?!", "?!"),
        ("", ""),
        ("ＦＵＬＬ ｗｉｄｔｈ", "full width"),
        ("Straße", "strasse"),
        ("猫。", "猫"),
    ],
)
def test_text_is_brought_to_one_form(text, plain):
    assert normalized(text) == plain


@given(st.text(max_size=30) | st.text("aAn the-5.,:1'’!? two", max_size=30))
def test_one_form_stays_itself(text):
    assert normalized(normalized(text)) == normalized(text)


def test_exact_and_soft_match():
    same = [("The dog.", "dog"), ("two", "2"), ("YES", "yes"), ("a  red   car", "red car"), ("top-left", "top left")]
    other = [("dog", "dogs"), ("dogs", "dog"), ("hotdog", "dog"), ("", "dog"), ("red", "red car"), ("21", "2")]
    assert all(exact(raw, answer) == soft(raw, answer) == 1 for raw, answer in same)
    assert not any(exact(raw, answer) for raw, answer in other)
    held = [
        ("There are two dogs.", "dog"),
        ("dog", "dogs"),
        ("He plays the red guitars", "a red guitar"),
        ("boxes", "box"),
    ]
    held += [("the ladies", "lady"), ("many children", "child"), ("Yes, he does", "yes"), ("glass", "glasses")]
    lost = [
        ("hot dogs", "cold dog"),
        ("red big car", "red car"),
        ("car red", "red car"),
        ("hotdog", "dog"),
        ("", "dog"),
    ]
    lost += [("12", "2"), ("bus", "bu"), ("this", "thi"), ("nothing", "no")]
    assert all(soft(raw, answer) == 1 for raw, answer in held)
    assert not any(soft(raw, answer) for raw, answer in lost)


def test_plurals_fold_to_their_singular():
    pairs = "dogs dog, boxes box, ladies lady, glasses glass, watches watch, bus bus, men man, feet foot, grass grass"
    for plural, one in (pair.split() for pair in pairs.split(", ")):
        assert singular(plural) == singular(one) == one


@pytest.mark.parametrize(("matches", "worth"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (7, 1), (10, 1)])
def test_vqa_accuracy_of_ten_answers(matches, worth):
    """Oracle: the ten ways to leave one answer out, counted by hand; (3 * 2/3 + 7 * 1) / 10 = 0.9 for three matches."""
    answers = ["red"] * matches + [f"other {i}" for i in range(10 - matches)]
    assert vqa_accuracy("Red.", answers) == pytest.approx(worth)


@given(
    st.lists(st.sampled_from(["red", "blue", "two", "none"]), min_size=1, max_size=10),
    st.sampled_from(["red", "2", "0"]),
)
def test_vqa_accuracy_is_the_mean_over_those_who_are_asked(answers, said):
    """Oracle: the definition, in fractions, over all subsets that lack one person."""
    same = {"red": "red", "2": "two", "0": "none"}[said]
    subsets = list(itertools.combinations(answers, len(answers) - 1))
    worth = sum(min(Fraction(1), Fraction(subset.count(same), 3)) for subset in subsets) / len(subsets)
    assert vqa_accuracy(said, answers) == pytest.approx(float(worth))


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("The two dogs", "2 dogs"),
        ("None", "0"),
        ("eleven", "eleven"),
        ("no.", "no"),
        ("3.5", "3.5"),
        ("3. 5", "3 5"),
        ("u.s.a.", "usa"),
        # a mark beside a space goes, one between letters leaves a space, and a number with a comma makes all of them go
        ("black/white", "black white"),
        ("black / white", "black white"),
        ("red,blue", "red blue"),
        ("red, blue", "red blue"),
        ("1,000", "1000"),
        ("1,000 black/white", "1000 blackwhite"),
        ("t-shirt", "t shirt"),
        ("dont", "don't"),
        ("couldnt've", "couldn't've"),
        ("somebody'd", "somebodyd"),
        ("man's", "man's"),
        ("a\tcat\n", "cat"),
        ("a", ""),
        ("$5 & 6%", "$5 & 6%"),
        ("5:30", "5:30"),
    ],
)
def test_answers_are_processed_as_in_the_challenge(text, plain):
    assert processed(text) == plain


def test_contractions_are_those_of_the_challenge():
    """Oracle: 114 entries of its list can be met; the others have a capital I, or change nothing ("let's", "she's")."""
    assert len(CONTRACTIONS) == 114
    assert {"aint", "'ows'at", "yall'll", "y'allll", "y'all'dve", "oclock", "maam", "twas"} <= set(CONTRACTIONS)
    assert not {"couldntve", "lets", "shes", "well", "were", "hell", "id", "shell", "ill"} & set(CONTRACTIONS)
    assert all(wrong.replace("'", "") == right.replace("'", "") for wrong, right in CONTRACTIONS.items())


@pytest.mark.parametrize(
    ("said", "score"), [("The Coca", 0), ("CocaCola", 8 / 9), ("Coca cola", 1), ("Cola", 0), ("Cat", 0), ("", 0)]
)
def test_anls_of_the_published_example(said, score):
    """Oracle: "What soft drink company name is on the red disk?", the example of the Robust Reading Competition."""
    assert anls(said, ["Coca Cola", "Coca Cola Company"]) == pytest.approx(score)


def test_anls_at_its_threshold():
    assert anls("abxx", ["abcd"]) == 0.5 and anls("abxxx", ["abcde"]) == 0
    assert anls("abxxx", ["abcde"], threshold=0.4) == pytest.approx(0.4)
    assert anls(" A  B ", ["a b"]) == 1 and anls("", [""]) == 1
    assert anls("beet", ["x", "beat"]) == 0.75
    with pytest.raises(ValueError, match="got none"):
        anls("x", [])
    with pytest.raises(ValueError, match="got no answers"):
        vqa_accuracy("x", [])


SHORT = st.text("abc", max_size=6)


@given(SHORT, SHORT)
def test_edits_are_levenshteins(one, other):
    """Oracle: his recursion, letter by letter."""

    @cache
    def distance(i, j):
        if not i or not j:
            return i + j
        same = one[i - 1] == other[j - 1]
        return min(distance(i - 1, j) + 1, distance(i, j - 1) + 1, distance(i - 1, j - 1) + (not same))

    assert edits(one, other) == distance(len(one), len(other))


@pytest.mark.parametrize(
    ("raw", "answer", "right"),
    [
        # 5 % of the right number, not of the answer
        *(
            ("95", "100", 1),
            ("105", "100", 1),
            ("94.9", "100", 0),
            ("105.1", "100", 0),
            ("1.05", "1", 1),
            ("0.95", "1", 1),
        ),
        *(("-95", "-100", 1), ("95", "-100", 0), ("0", "0", 1), ("0.0", "0", 1), ("0.01", "0", 0), ("1e2", "100", 1)),
        *(("5%", "0.05", 1), ("5%", "5%", 1), ("5.2%", "5%", 1), ("5", "5%", 0), (".5", "0.5", 1), ("+3", "3", 1)),
        *((" 14. ", "14", 1), ("2019", "2018", 1), ("14.", "14", 1), ("14.5.", "14.5", 1)),
        # anything else must be the same
        *(("Yes", "yes", 1), ("Yes.", "yes", 1), ("Yes, it is", "yes", 0), ("", "yes", 0), ("Russia", "Prussia", 0)),
        *(
            ("1,000", "1000", 0),
            ("$5", "5", 0),
            ("5 apples", "5", 0),
            ("nan", "5", 0),
            ("inf", "5", 0),
            ("1_0", "10", 0),
        ),
    ],
)
def test_relaxed_accuracy(raw, answer, right):
    assert relaxed(raw, answer) == right


def test_relaxed_accuracy_with_another_tolerance():
    assert relaxed("110", "100", tolerance=0.1) == 1 and relaxed("101", "100", tolerance=0) == 0


YES_NO = {
    "yes": """yes | Yes. | YES! | Yes, there is. | **Yes** | Yes, there is no dog. | The answer is yes. | Answer: Yes
        It barks, so yes. | There is one, so the answer is yes""",
    "no": """no | No. | No, not one | There is no dog in it. | There are no dogs | The answer is: no | Answer: no.
        no dog | I see no dog. | No, it does not""",
    None: """? | maybe | yes and no | Yes/No | no yes | No idea | There is no way to tell | There is a dog. | Yesterday
        Nothing | not sure | The answer is yes. The answer is no. | A dog, not a cat | The answer is no longer there
        eyes | know | I have no idea""",
}


@pytest.mark.parametrize(
    ("said", "read"), [(said.strip(), read) for read, text in YES_NO.items() for said in re.split(r"\||\n", text)]
)
def test_yes_and_no_are_read_or_left(said, read):
    assert read_yes_no(said) == read


def test_lines_of_a_yes_or_no():
    assert read_yes_no("Yes\nIt is there") == "yes" and read_yes_no("No\nYes") is None and read_yes_no("") is None


def test_binary_counts_of_a_worked_example():
    """Oracle: by hand. Of 4 "yes" 2 are found, 1 is missed and 1 unread; of 4 "no" 1 is called yes and 1 is unread."""
    pairs = [("yes", "yes"), ("yes", "yes"), ("no", "yes"), (None, "yes")]
    pairs += [("no", "no"), ("no", "no"), ("yes", "no"), (None, "no")]
    found = binary(pairs)
    assert list(found) == ["accuracy", "precision", "recall", "F1", "yes share"]
    assert found == pytest.approx(
        {
            "accuracy": 4 / 8,
            "precision": 2 / 3,
            "recall": 2 / 4,
            "F1": 2 * (2 / 3) * (1 / 2) / (2 / 3 + 1 / 2),
            "yes share": 3 / 8,
        }
    )
    assert set(binary([]).values()) == {0.0} and binary([("no", "no")])["F1"] == 0


@pytest.mark.parametrize(
    ("raw", "box"),
    [
        ("[0.1, 0.2, 0.5, 0.9]", (0.1, 0.2, 0.5, 0.9)),
        ("(12,30),(200,180)", (12, 30, 200, 180)),
        ("<box>(12,30),(200,180)</box>", (12, 30, 200, 180)),
        ("<|box_start|>(12,30),(200,180)<|box_end|>", (12, 30, 200, 180)),
        ('```json\n[{"bbox_2d": [12, 30, 200, 180], "label": "dog"}]\n```', (12, 30, 200, 180)),
        ("x1=12, y1=30, x2=200, y2=180", (12, 30, 200, 180)),
        ("12 30 200 180", (12, 30, 200, 180)),
        ("The dog is at [12, 30, 200, 180].", (12, 30, 200, 180)),
        ("[-1.5, 0, 1e2, 3]", None),
        ("[12, 30, 200, 180] [12, 30, 200, 180]", (12, 30, 200, 180)),
        ("[12, 30, 200, 180] or [1, 2, 3, 4]", None),
        ("[12, 30, 200]", None),
        ("[12, 30, 200, 180, 5]", None),
        ("The 2 dogs are at [12, 30, 200, 180]", None),
        ("no box", None),
        ("", None),
    ],
)
def test_a_box_is_read_or_left(raw, box):
    assert read_box(raw) == box


BOX = st.tuples(*[st.integers(0, 6)] * 4)


@given(BOX, BOX)
def test_iou_counts_pixels(a, b):
    """Oracle: the unit squares that each box covers."""

    def pixels(box):
        return set(itertools.product(range(box[0], box[2]), range(box[1], box[3])))

    one, other = pixels(a), pixels(b)
    assert iou(a, b) == pytest.approx(len(one & other) / len(one | other) if one & other else 0.0)
    assert iou(a, b) == iou(b, a)
