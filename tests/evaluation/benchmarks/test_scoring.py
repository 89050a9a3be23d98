"""Official scores against values worked out by hand."""

import pytest

from star_export.evaluation.benchmarks.pope import yes_or_no
from star_export.evaluation.benchmarks.scoring import (
    f1,
    letter,
    soft_accuracy,
    submitted,
    vqa_accuracy,
    vqa_words,
)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("The two Cats.", "2 cats"),
        ("none", "0"),
        ("an apple, a pear", "apple pear"),
        ("dont", "don't"),
        ("couldntve", "couldntve"),  # two are missing: not in the table
        ("couldnt've", "couldn't've"),
        ("somebody'd", "somebodyd"),  # the table's own mistake
        ("hello-world", "hello world"),
        ("hello - world", "hello world"),
        ("1,000", "1000"),
        ("3.5", "3.5"),
        ("u.s.a.", "usa"),
        ("yes\n", "yes"),
        ("dog's", "dog 's"),
    ],
)
def test_words_as_they_are_submitted(said: str, expected: str) -> None:
    assert submitted(said) == expected


def test_words_of_the_official_evaluation_keep_the_genitive() -> None:
    assert vqa_words("the dog's") == "dog's"


@pytest.mark.parametrize(
    ("equal", "expected"),
    # One of ten equal: nine subsets hold it (1/3 each), one does not: 0.9 / 3.
    # Three: seven subsets hold all three, three hold two: (7 + 3 * 2/3) / 10.
    [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)],
)
def test_soft_accuracy_is_a_mean_over_ten_subsets_of_nine(equal: int, expected: float) -> None:
    references = ["red"] * equal + ["rose"] * (10 - equal)
    assert soft_accuracy("red", references) == pytest.approx(expected)


def test_references_are_evened_out_only_where_they_differ() -> None:
    assert vqa_accuracy("2", ["two"] * 10) == 0.0
    assert vqa_accuracy("2", ["two"] * 9 + ["three"]) == 1.0
    assert vqa_accuracy("Two.", ["2"] * 10) == 1.0


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("B", "B"),
        (" B\n", "B"),
        ("B. a cat", "B"),
        ("The answer is B.", "B"),
        ("B.", None),  # the official parser does not take it
        ("The answer is A. The answer is B.", None),
        ("E", None),
        ("b", None),
        ("Because", None),
        ("", None),
    ],
)
def test_letters(said: str, expected: str | None) -> None:
    assert letter(said, letters="ABCD") == expected


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("Yes", "yes"),
        ("No", "no"),
        ("no, there is not", "no"),
        ("There is not a dog.", "no"),
        ("Yes. No", "yes"),
        ("None", "yes"),
        ("", "yes"),
    ],
)
def test_yes_or_no_by_the_first_sentence(said: str, expected: str) -> None:
    assert yes_or_no(said) == expected


def test_f1() -> None:
    assert f1(true=3, false=1, missed=2) == pytest.approx(2 * 0.75 * 0.6 / (0.75 + 0.6))
    assert f1(true=0, false=5, missed=0) == 0.0
