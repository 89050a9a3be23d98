"""Every benchmark on a tiny folder: prompts, and scores counted by hand."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from star_export.errors import InputError, SettingsError
from star_export.evaluation.record import Row, ScoredAnswer
from star_export.evaluation.task import Task
from star_export.evaluation.tasks import BENCHMARKS, open_task
from tests.evaluation.benchmarks.folders import FOLDERS

SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."


def made(name: str, root: Path) -> Task:
    """A task on its folder."""
    FOLDERS[name](root)
    return open_task(name, data=root)


def graded(task: Task, answers: Sequence[str], split: str | None = None) -> list[Row]:
    """Rows of a model that gives these answers."""
    rows = []
    for index, said in enumerate(answers):
        example = task.example(split or task.splits[-1], 0, index)
        answer = ScoredAnswer(said, task.score(example, said), 1.0)
        rows.append(Row(index, example.kind, example.question, example.answer, {"it": answer}))
    assert len(rows) == task.size(split or task.splits[-1])
    return rows


def scores(rows: Sequence[Row]) -> list[float | None]:
    return [row.answers["it"].score for row in rows]


def test_every_benchmark_has_a_folder_here() -> None:
    assert FOLDERS.keys() == BENCHMARKS.keys()


def test_vqav2(tmp_path: Path) -> None:
    task = made("vqav2", tmp_path)
    rows = graded(task, ["Two", "No"])
    assert rows[0].question == "How many?" + SHORT
    assert [row.kind for row in rows] == ["number", "yes/no"]
    assert [row.expected for row in rows] == ["3", "yes"]
    assert scores(rows) == [pytest.approx(0.9), 0.0]  # three of ten said 2 or two
    assert scores(graded(task, ["3", "yes"])) == [1.0, 1.0]
    assert scores(graded(task, ["What"], "test-dev")) == [None]
    assert task.submission("test-dev", {0: "The cat."}) == [
        {"question_id": 2, "answer": ""},
        {"question_id": 1, "answer": "cat"},
    ]
    assert task.judge("val") is None
    assert "eval.ai" in str(task.judge("test-dev"))


def test_gqa(tmp_path: Path) -> None:
    task = made("gqa", tmp_path)
    rows = graded(task, ["Yes.", "a car"])
    assert rows[0].question == "Is it red?" + SHORT
    assert [row.kind for row in rows] == ["binary", "open"]
    assert scores(rows) == [1.0, 0.0]


def test_vizwiz(tmp_path: Path) -> None:
    task = made("vizwiz", tmp_path)
    rows = graded(task, ["Unanswerable", "Red"])
    hint = "\nWhen the provided information is insufficient, respond with 'Unanswerable'."
    assert rows[0].question == "What is this?" + hint + SHORT
    assert [row.kind for row in rows] == ["unanswerable", "other"]
    assert scores(rows) == [1.0, pytest.approx(0.6)]
    assert scores(graded(task, ["x"], "test")) == [None]
    assert task.submission("test", {0: "A Dog"}) == [{"image": "c.jpg", "answer": "dog"}]


def test_textvqa_with_and_without_hints(tmp_path: Path) -> None:
    task = made("textvqa", tmp_path)
    rows = graded(task, ["1999", "nike's"])
    assert rows[0].question == "What year?\nReference OCR token: NIKE, 1999" + SHORT
    assert scores(rows) == [1.0, 1.0]
    rows = graded(task, ["1998", "nike"], "val")
    assert rows[0].question == "What year?" + SHORT
    assert scores(rows) == [1.0, 0.0]


def test_pope(tmp_path: Path) -> None:
    task = made("pope", tmp_path)
    # random: one of two found, one false alarm; popular: all right; adversarial: always yes
    rows = graded(task, ["Yes", "No", "Yes", "No", "Yes", "No", "Yes", "Yes"])
    assert rows[0].question == "Is there a dog in the image?" + SHORT
    assert task.metrics(rows, "it") == {
        "F1": pytest.approx((50 + 100 + 200 / 3) / 3),
        "F1, random": 50.0, "accuracy, random": 50.0, "yes, random": 50.0,
        "F1, popular": 100.0, "accuracy, popular": 100.0, "yes, popular": 50.0,
        "F1, adversarial": pytest.approx(200 / 3), "accuracy, adversarial": 50.0, "yes, adversarial": 100.0,
    }  # fmt: skip
    assert list(task.metrics(rows[:2], "it")) == ["F1", "F1, random", "accuracy, random", "yes, random"]


def test_mme(tmp_path: Path) -> None:
    task = made("mme", tmp_path)
    said = ["Yes", "no"] * 15
    said[2:6] = ["Yes.", "No way", "Yes", "yes, it is"]  # count: three of four right, one pair of two
    said[-1] = "Maybe"  # code_reasoning: one of two
    rows = graded(task, said)
    assert rows[0].question == "Is it red?" + SHORT
    found = task.metrics(rows, "it")
    assert found["score, count"] == 75 + 50
    assert found["score, code_reasoning"] == 50
    assert found["perception"] == 9 * 200 + 125
    assert found["cognition"] == 3 * 200 + 50
    assert list(found)[:2] == ["perception", "cognition"]
    assert "cognition" not in task.metrics(rows[:24], "it")


def test_mmvet_is_scored_elsewhere(tmp_path: Path) -> None:
    task = made("mmvet", tmp_path)
    rows = graded(task, ["x is 1"])
    assert rows[0].question == "What is x?"
    assert scores(rows) == [None]
    assert "GPT-4" in str(task.judge("test"))
    assert task.submission("test", {0: "x is 1"}) == {"v1_0": "x is 1"}


def test_scienceqa(tmp_path: Path) -> None:
    task = made("scienceqa", tmp_path)
    rows = graded(task, ["B", "A", "The answer is A."])
    assert rows[0].question == "Context: Look.\nWhich is red?\nA. this\nB. that" + LETTER
    assert rows[1].question == "Which rhymes?\nA. cat\nB. dog" + LETTER
    assert [row.kind for row in rows] == ["natural science", "language science, text only", "social science"]
    assert scores(rows) == [1.0, 1.0, 0.0]
    assert task.metrics(rows, "it") == {"IMG-Accuracy": 50.0}
    assert task.metrics(rows[1:2], "it") == {}
    assert [task.example("test", 0, index).image is None for index in range(3)] == [False, True, False]
    rows = graded(task, ["B", "The answer is A."], "test-image")
    assert [row.kind for row in rows] == ["natural science", "social science"]
    assert task.metrics(rows, "it") == {"IMG-Accuracy": 50.0}


def test_mmbench_in_every_order(tmp_path: Path) -> None:
    task = made("mmbench", tmp_path)
    rows = graded(task, ["A", "C", "A"])
    assert rows[1].question == "A hint.\nWhich\nshape?\nA. ring\nB. star\nC. cross" + LETTER
    assert scores(rows) == [1.0, 1.0, 0.0]
    assert task.metrics(rows, "it") == {"circular": 50.0}
    assert task.metrics(graded(task, ["A", "C", "B"]), "it") == {"circular": 100.0}
    assert task.metrics(rows[:2], "it") == {"circular": 100.0}  # question 1 was not asked in every order
    assert task.example("dev", 0, 1).image.getpixel((0, 0))[2] > 200


def test_seed(tmp_path: Path) -> None:
    task = made("seed", tmp_path)
    rows = graded(task, ["B"])
    options = "\nA. option a\nB. option b\nC. option c\nD. option d"
    assert rows[0].question == "What scene?" + options + LETTER
    assert (rows[0].kind, scores(rows), task.metrics(rows, "it")) == ("Scene Understanding", [1.0], {})
    rows = graded(task, ["B", "D."], "all")
    assert scores(rows) == [1.0, 0.0]
    assert task.metrics(rows, "it") == {"image": 100.0, "video": 0.0}


@pytest.mark.parametrize("name", FOLDERS)
def test_question_files_are_hashed_and_missed(name: str, tmp_path: Path) -> None:
    """Each file that a split was read from: the error names it and where it is published."""
    task = made(name, tmp_path)
    assert task.size(task.splits[-1]) > 0
    for file, digest in dict(task.files).items():
        assert len(digest) == 64
        if name == "mme":
            continue  # its texts are found by listing
        path = tmp_path / file
        content = path.read_bytes()
        path.unlink()
        with pytest.raises(InputError, match=f"{path.name} is missing; it is published at .") as error:
            open_task(name, data=tmp_path).size(task.splits[-1])
        assert "\n" not in str(error.value)
        path.write_bytes(content[: len(content) // 2 + 3])
        with pytest.raises(InputError, match=r"no such file as published|is not whole|without"):
            open_task(name, data=tmp_path).size(task.splits[-1])
        path.write_bytes(content)


def test_an_mme_text_that_is_no_pair(tmp_path: Path) -> None:
    FOLDERS["mme"](tmp_path)
    text = tmp_path / "MME/MME_Benchmark_release_version/color/0001.txt"
    text.write_text("Is it red?\tPerhaps\nIs it?\tNo\n")
    with pytest.raises(InputError, match=r"0001.txt must have two lines"):
        open_task("mme", data=tmp_path).size("test")
    text.unlink()
    with pytest.raises(InputError, match=r"color has no questions \(\*.txt\); MME is published at"):
        open_task("mme", data=tmp_path).size("test")


def test_answers_without_questions(tmp_path: Path) -> None:
    FOLDERS["gqa"](tmp_path)
    path = tmp_path / "gqa/data/testdev_balanced_questions.json"
    answers = json.loads(path.read_text())
    path.write_text(json.dumps({**answers, "99": answers["10"]}))
    with pytest.raises(InputError, match="an answer without a question, 99"):
        open_task("gqa", data=tmp_path).size("testdev")
    path.write_text(json.dumps({"11": answers["11"]}))
    with pytest.raises(InputError, match="a question without an answer, 10"):
        open_task("gqa", data=tmp_path).size("testdev")


@pytest.mark.parametrize(
    ("name", "file", "before", "after", "message"),
    [
        ("scienceqa", "problems.json", '"answer": 2', '"answer": 5', "expected int <= 4"),
        ("seed", "SEED-Bench.json", '"answer": "B"', '"answer": "E"', "invalid enum value 'E'"),
        ("textvqa", "TextVQA_0.5.1_val.json", '"question": "What year?"', '"question": 7', "expected str"),
        ("pope", "coco_pope_random.json", '"label": "no"', '"label": "maybe"', "line 3 is no such file"),
        (
            "vizwiz",
            "val.json",
            '"answers": [{',
            '"answers": [], "x": [{',
            "a question without an answer, a.jpg",
        ),
    ],
)
def test_values_that_cannot_be(
    tmp_path: Path, name: str, file: str, before: str, after: str, message: str
) -> None:
    FOLDERS[name](tmp_path)
    (path,) = tmp_path.rglob(file)
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after, 1))
    with pytest.raises(InputError, match=f"(?i){message}"):
        open_task(name, data=tmp_path).size(BENCHMARKS[name](tmp_path).splits[-1])


def test_a_picture_that_is_missing_or_damaged(tmp_path: Path) -> None:
    FOLDERS["vizwiz"](tmp_path)
    path = tmp_path / "vizwiz/val/b.jpg"
    path.write_bytes(b"no picture")
    task = open_task("vizwiz", data=tmp_path)
    with pytest.raises(InputError, match=r"question b.jpg: .*not a picture.*published at https://vizwiz"):
        task.example("val", 0, 1)
    path.unlink()
    with pytest.raises(InputError, match=r"question b.jpg: .*b.jpg does not exist.*published at"):
        task.example("val", 0, 1)


def test_questions_about_one_picture_share_it(tmp_path: Path) -> None:
    task = made("vqav2", tmp_path)
    assert task.example("val", 0, 0).image is task.example("val", 0, 1).image


def test_data_and_task_belong_together(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"data has no meaning for shapes, which is drawn"):
        open_task("shapes", data=tmp_path)
    with pytest.raises(SettingsError, match=r"data is not given; gqa is read from a folder"):
        open_task("gqa")
    with pytest.raises(SettingsError, match=r"nowhere is no folder; gqa is read"):
        open_task("gqa", data=tmp_path / "nowhere")
    with pytest.raises(SettingsError, match=r"split must be one of test, val for vizwiz, got dev"):
        open_task("vizwiz", split="dev", data=tmp_path)


def test_what_the_submission_needs_is_missed_before_the_run(tmp_path: Path) -> None:
    FOLDERS["vqav2"](tmp_path)
    (tmp_path / "vqav2/llava_vqav2_mscoco_test2015.jsonl").unlink()
    with pytest.raises(InputError, match=r"llava_vqav2_mscoco_test2015.jsonl is missing"):
        open_task("vqav2", data=tmp_path).size("test-dev")
