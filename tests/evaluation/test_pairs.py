"""Pictures and questions from a file, and what is wrong with some."""

import json
from pathlib import Path

import pytest
from PIL import Image

from star_export.errors import InputError
from star_export.evaluation.pairs import ALL, Pairs


def write(folder: Path, *lines: object) -> Path:
    path = folder / "pairs.jsonl"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def test_pictures_are_found_beside_the_file(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    Image.new("L", (5, 7)).save(tmp_path / "pictures" / "dog.png")
    pair = {"image": "pictures/dog.png", "question": "What is it?", "answer": "A dog"}
    pairs = Pairs(write(tmp_path, pair, "", pair | {"question": "Who?"}))
    assert (pairs.size(ALL), pairs.answered) == (2, True)
    example = pairs.example(ALL, 0, 1)
    assert (example.image.size, example.image.mode, example.question) == ((5, 7), "RGB", "Who?")
    assert pairs.place(1).endswith("pairs.jsonl line 3")
    scores = [pairs.score(example, answer) for answer in ("a  dog.", "A dog", "dog", "")]
    assert scores == [1, 1, 0, 0]


def test_answers_may_be_left_out(tmp_path: Path) -> None:
    assert not Pairs(write(tmp_path, {"image": "a.png", "question": "What?"})).answered


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ((), "is empty; give lines of"),
        (("{",), "line 1 is no pair of image and question (it is not JSON"),
        (({"image": "a.png"},), "line 1 is no pair of image and question (object missing required field"),
        (({"image": "a.png", "question": 3},), "expected str, got int"),
        (({"image": "a.png", "question": "?", "anser": "b"},), "anser: unknown"),
        (({"image": "a.png", "question": "?", "answer": "b"}, {"image": "a.png", "question": "?"}),
         "line 2 has no answer, unlike"),
        (({"image": "a.png", "question": "?"}, {"image": "a.png", "question": "?", "answer": "b"}),
         "line 2 has an answer, unlike"),
    ],
)  # fmt: skip
def test_bad_lines_are_named(tmp_path: Path, lines: tuple[object, ...], message: str) -> None:
    with pytest.raises(InputError) as found:
        Pairs(write(tmp_path, *lines))
    assert message in str(found.value)
    assert "\n" not in str(found.value)


def test_pictures_that_cannot_be_read_are_named_with_their_line(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    pairs = Pairs(write(tmp_path, *({"image": f"{name}.png", "question": "?"} for name in ("no", "text"))))
    for index, message in enumerate(("no.png does not exist", "text.png is not a picture")):
        with pytest.raises(InputError, match=f"line {index + 1}: .*{message}"):
            pairs.example(ALL, 0, index)
    with pytest.raises(InputError, match=r"missing\.jsonl cannot be read: No such file"):
        Pairs(tmp_path / "missing.jsonl")
