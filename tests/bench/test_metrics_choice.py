"""Which letter an answer chooses. Oracle: phrasings that a person has read, and what must hold for all of them."""

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtprune.bench.metrics.choice import lettered, read_letter, unprefixed
from vtprune.bench.question import LETTERS

OPTIONS = ("a dog", "a cat", "two birds", "a fish")

SAYS_B = r"""
B | (B) | B. | b | b. | (b) | [B] | {B} | <B> | b) | B) | "B" | 'B' | **B** | **B.** | `B` | $B$ | (B). | B! | （B）
- B | > B
Answer: B | answer: b | ANSWER: B | Answer: (B) | Answer - B | Answer B | Answer is B | answer = B | My answer is B!
The answer is B | The answer is B. | The answer is (B) | The answer is: B | The answer is option B.
The correct answer is B | The correct option is: (B) | The best answer would be B. | The most likely answer is (B).
The answer is therefore B. | The right choice is b. | So the answer is (B), because of the ears.
The answer is (B) because (A) is wrong | The answer is B because A is wrong | The answer is B, not A.
Option B | option b | Choice B. | Option (B) | Option B is right. | Option B shows it best | Letter B
Best option: (B) | Best option: B | Correct: B | The correct one is B
I choose B | I would choose (B). | I'd go with B | I pick B. | I am going with option B. | I would select option B.
It is B. | It's (B) | That is B. | I think it is B. | I believe it's B, the one with whiskers. | I think B is correct.
B is correct. | (B) is the correct answer. | B is the most likely one, it is the answer
So B. | Therefore, (B). | Hence B
B. a cat | (B) a cat | B) a cat | B: a cat | B - a cat | b. a cat | b) a cat | B a cat | B, a cat | B. cat | B.\ta cat
B. Because it purrs. | B, because it purrs | B because it purrs | (B) because (A) is wrong
B\n\nIt has whiskers. | B.\nExplanation: the ears are pointed. | B\nQuestion: what else? | Answer:\nB
Answer:\n\n(B) a cat
Final answer: B | The answer could be A. Final answer: B | **Final Answer:** (B) | The final answer is $\boxed{B}$.
\boxed{B} | $\boxed{\text{B}}$ | \boxed{(B)} | <answer>B</answer> | <answer> (B) a cat </answer> | B</s> | B<|im_end|>
(A) is incorrect, so (B). | Not A. The answer is B. | The answer isn't A, it is B. | Eliminate (A). The answer is (B).
Let me think. (A) shows a dog. (B) shows a cat. The answer is (B).
I think (B) fits best | Looking at the picture, (B) | Definitely (B).
a cat | A cat. | The cat | cat | CAT! | It is a cat. | There is a cat on the mat. | I see the cat, which is asleep
An answer: cat
"""

SAYS_NOTHING = r"""
? | ... | Hmm. | I do not know. | none of them | unclear | No. | The answer is
A big house | A horse | A man rides a horse | I think so | I | I, too | A-frame | A.M. traffic | A.I. | Aha | A's
The answer is a | The answer is a horse | The answer is a small horse | Answer: A horse. | It is a
I would pick a horse
E | (E) | E. a horse | The answer is E. | Answer: (E) | Option E | Z | (Z)
A and B | A, B | A, B, C | A & B | A/B | A or B | (A)(B) | (A) (B) | (A) and (B) | Both (A) and (B)
Either (A) or (B) | A; B | AB | A B
Options A and B | The answer is A or B | The answer is either A or C | The answers are A and B | Answer: A, B
Answer: A/B
The answer is A. The answer is B. | Option A or option B | It could be (A), but maybe (B). | A: B | B\nThe answer is C
A. a dog\nB. a cat\nC. two birds\nD. a fish | A. a dog B. a cat C. two birds | (A) a dog (B) a cat | A\nB\nC
Options:\nA. dog\nB. cat | Answer:\nA. dog\nB. cat
not B | Not (B) | The answer is not B. | The answer is not (B). | (B) is wrong | (B) is incorrect.
B is not correct. | (B) isn't right.
Neither (A) nor (B) | Anything but not (B) | It isn't (B). | (B) can be ruled out. | Rather than (B), something else
It is not a cat | no cat | There isn't a cat | neither a dog nor a cat | something without a cat | smaller than a cat
dog or cat | a cat and a dog | A dog and a cat. | There are two birds and a fish. | bird | dogs and cats | cats
B dog | B. a dog | (B) a dog | The answer is (B) a dog | Answer: B. a fish | dog (B) | B: two birds
vitamin C | Plan B | B-52 | U.S. Army | the object(s) | Mr. B | C# | C++ | D.C. | R&B | type-B | 4B | B2 | d'accord
Bob | I'm B2B | Which option?
"""


def phrasings(text):
    """What stands between the bars; a written \\n is a new line, the \\t of \\text is none."""
    several = [one.strip(" ") for one in re.split(r" \| |\n", text)]
    return [one.replace(r"\n", "\n").replace(r"B.\t", "B.\t") for one in several if one]


@pytest.mark.parametrize("raw", phrasings(SAYS_B))
def test_a_letter_is_read_by_its_form(raw):
    assert read_letter(raw, OPTIONS) == "B"


@pytest.mark.parametrize("raw", ["", " ", "\n", *phrasings(SAYS_NOTHING)])
def test_nothing_is_guessed(raw):
    assert read_letter(raw, OPTIONS) is None


@pytest.mark.parametrize(
    ("raw", "options", "letter"),
    [
        # "A" is a letter where it stands alone, and a word where a noun follows
        ("A", OPTIONS, "A"),
        ("A.", OPTIONS, "A"),
        ("A because it barks", OPTIONS, "A"),
        ("Option A shows it", OPTIONS, "A"),
        ("A dog is running", ("a cat", "a dog is running", "rain"), "B"),
        ("A dog", ("A cat", "A dog"), "B"),
        ("A dog", OPTIONS, "A"),
        ("A cat is running", OPTIONS, "B"),
        # what the options say counts before what looks like a letter
        ("Plan B", ("Plan B", "Plan A"), "A"),
        ("vitamin C", ("vitamin A", "vitamin C", "vitamin D"), "B"),
        ("B. C. elegans", ("E. coli", "C. elegans"), "B"),
        ("C. elegans", ("E. coli", "C. elegans", "a fly"), "B"),
        ("C", ("C", "B", "A"), "C"),
        # the longest option that is held, unless another is said as well
        ("a dog and a cat", ("a dog", "a dog and a cat"), "B"),
        ("They see a dog and a cat.", ("a dog", "a dog and a cat"), "B"),
        ("a dog and a cat, or a dog", ("a dog", "a dog and a cat"), None),
        ("the red car park", ("red car", "car park"), None),
        ("red", ("red", "red"), None),
        ("I see red", ("red", "red"), None),
        ("not red", ("red", "not red"), "B"),
        ("It is not red at all", ("red", "not red"), "B"),
        ("none of the above", ("red", "none of the above"), "B"),
        # numbers, in words and digits; 10:30 is not 10
        ("There are three.", ("2", "3", "10"), "B"),
        ("3 at 10:30", ("2", "3", "10"), "B"),
        ("30", ("2", "3"), None),
        ("1", ("1", "2"), "A"),
        ("2", ("cat", "dog"), None),
        # yes and no by what yes and no mean
        ("No, there is none.", ("Yes", "No"), "B"),
        ("There is no dog.", ("yes", "no"), "B"),
        ("I have no idea", ("yes", "no"), None),
        ("Yes and no", ("yes", "no"), None),
        ("Yes", ("yes", "no", "not clear"), "A"),
        # more than four options, fewer, and none
        ("The answer is E.", (*OPTIONS, "a horse"), "E"),
        ("I", tuple("abcdefghi"), "I"),
        ("I think it is G", tuple("stuvwxyz"), "G"),
        ("C", ("yes", "no"), None),
        ("A", (), None),
        # in other scripts
        ("猫", ("狗", "猫"), "B"),
        ("Ответ: B", ("собака", "кошка"), None),
    ],
)
def test_what_the_options_say_counts(raw, options, letter):
    assert read_letter(raw, options) == letter


TEMPLATES = (
    *("{}", "({})", "{}.", "Answer: {}", "The answer is ({}) because of it.", "Option {}", "Best option: ({})"),
    *("I choose {}.", "**{}**", "({}) is correct.", "{}\nas one can see", "It is {}.", "\\boxed{{{}}}", "{}) it is"),
)


@pytest.mark.parametrize("template", TEMPLATES)
def test_every_letter_is_read_alike(template):
    """Oracle: the letter that was put in. Past the last option it chooses nothing."""
    options = [f"thing {i}" for i in range(26)]
    for i, letter in enumerate(LETTERS):
        raw = template.format(letter)
        assert read_letter(raw, options) == letter
        assert read_letter(raw, options[:i]) is None


WORDS = st.lists(
    st.sampled_from("a the dog cat red B C (A) not is answer : . \n or D option yes".split(" ")), max_size=9
)


@given(WORDS.map(" ".join) | st.text(max_size=40), st.integers(0, 5))
def test_whatever_is_said_is_read_as_an_option_or_not_at_all(raw, n):
    assert read_letter(raw, [f"thing {i}" for i in range(n)]) in (None, *LETTERS[:n])


@given(st.permutations(["a red dog", "two dogs", "a dog", "nothing", "12:30"]), st.integers(0, 4))
def test_the_text_of_an_option_is_that_option_wherever_it_stands(options, row):
    """Oracle: its row."""
    for template in ("{}", "{}.", "The {}"):
        assert read_letter(template.format(options[row]), options) == LETTERS[row]


@given(st.sampled_from("ABCD"), st.sampled_from("ABCD"), st.sampled_from(["{} and {}", "{}, {}", "{} or {}", "{}/{}"]))
def test_two_letters_are_no_choice(one, other, template):
    for shown in ("{}", "({})"):
        raw = template.format(shown.format(one), shown.format(other))
        assert read_letter(f"The answer is {raw}.", OPTIONS) == (one if one == other else None)


def test_nothing_begins_in_the_middle_of_a_long_answer():
    """Only the letters near a mark are looked at; "it is B" says B where a sentence begins, and here it does not."""
    for between in [" is" * n + more for n in range(45, 60) for more in ("", " was", " would")]:
        assert read_letter(f"The fruit it{between} B", OPTIONS) is None


def test_long_answers_are_read_fast():
    for raw in ("the answer is " * 3000, "A " * 3000, "(A) is " * 2000, "answer" + " is" * 5000):
        start = time.process_time()
        read_letter(raw, OPTIONS)
        assert time.process_time() - start < 2


def test_options_get_letters():
    assert lettered(["x", "y"]) == "A. x\nB. y"
    assert lettered(["x", "A"], "(A) ") == "(A) x\n(B) A"
    assert lettered([]) == ""
    with pytest.raises(ValueError, match="27 options"):
        lettered(["x"] * 27)
    with pytest.raises(ValueError, match="shows the letter A"):
        lettered(["x"], "1. ")


@pytest.mark.parametrize(
    ("options", "bare"),
    [
        (["A. cat", "B. dog"], ("cat", "dog")),
        (["(A) cat", "(B) dog"], ("cat", "dog")),
        (["A) cat", "B) dog", "C)bird"], ("cat", "dog", "bird")),
        (["A: cat", "B:dog"], ("cat", "dog")),
        (["a. cat", "b. dog"], ("cat", "dog")),
        ([" A. cat ", "B. A. Smith"], ("cat", "A. Smith")),
        # a letter that is not the option's own, or not before all of them, belongs to the text
        (["A. cat", "C. dog"], None),
        (["A. cat", "dog"], None),
        (["B. cat", "A. dog"], None),
        (["A cat", "B dog"], None),
        (["A.", "B."], None),
        (["A. Smith"], None),
        (["Apple", "Bear"], None),
        ([], None),
    ],
)
def test_letters_before_options_go_only_if_they_are_their_own(options, bare):
    assert unprefixed(options) == (tuple(options) if bare is None else bare)


@given(st.lists(st.text("abc xyz", min_size=1).filter(lambda x: x.strip() == x), min_size=2, max_size=6))
def test_letters_come_off_as_they_were_put_on(options):
    for style in ("A. ", "(A) ", "A) ", "A: "):
        assert unprefixed(lettered(options, style).split("\n")) == tuple(options)
