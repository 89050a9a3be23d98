"""Tiny folders in the formats of the published benchmarks, made by hand."""

import base64
import io
import json
from pathlib import Path
from typing import Any

from PIL import Image

from star_export.evaluation.benchmarks.mme import COGNITION, PERCEPTION


def picture(path: Path, color: str = "red") -> None:
    """A picture of one colour, in the format of its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (48, 32), color).save(path)


def encoded(color: str) -> str:
    """A picture in base64."""
    buffer = io.BytesIO()
    Image.new("RGB", (48, 32), color).save(buffer, "JPEG")
    return base64.b64encode(buffer.getvalue()).decode()


def write(path: Path, value: Any) -> None:
    """A value as JSON; a tuple as lines of JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = value if isinstance(value, tuple) else (value,)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def ten(*answers: tuple[str, int]) -> list[str]:
    """Ten answers: ``ten(("red", 7), ("rose", 3))``."""
    found = [answer for answer, count in answers for _ in range(count)]
    assert len(found) == 10
    return found


def vqav2(root: Path) -> None:
    folder = root / "vqav2"
    asked = [
        {"question_id": 42, "image_id": 7, "question": "How many?"},
        {"question_id": 43, "image_id": 7, "question": "Is it red?"},
    ]
    given = {
        42: ("number", ten(("2", 2), ("two", 1), ("3", 7))),
        43: ("yes/no", ten(("yes", 10))),
    }
    annotations = [
        {
            "question_id": key,
            "image_id": 7,
            "question_type": "how many",
            "answer_type": kind,
            "multiple_choice_answer": max(answers, key=answers.count),
            "answers": [{"answer": said, "answer_id": n} for n, said in enumerate(answers)],
        }
        for key, (kind, answers) in given.items()
    ]
    write(folder / "v2_OpenEnded_mscoco_val2014_questions.json", {"info": {}, "questions": asked})
    write(folder / "v2_mscoco_val2014_annotations.json", {"info": {}, "annotations": annotations})
    picture(folder / "val2014/COCO_val2014_000000000007.jpg")
    line = {"image": "COCO_test2015_1.jpg", "text": "What?\nAnswer.", "category": "default"}
    write(folder / "llava_vqav2_mscoco_test-dev2015.jsonl", ({"question_id": 1, **line},))
    write(folder / "llava_vqav2_mscoco_test2015.jsonl", ({"question_id": 2}, {"question_id": 1}))
    picture(folder / "test2015/COCO_test2015_1.jpg")


def gqa(root: Path) -> None:
    folder = root / "gqa"
    questions = {"10": ("Is it red?", "yes", "verify"), "11": ("What is it?", "car", "query")}
    text = "{}\nAnswer the question using a single word or phrase."
    lines = [
        {"question_id": key, "image": "n1.jpg", "text": text.format(q), "category": "default"}
        for key, (q, _, _) in questions.items()
    ]
    published = {
        key: {"question": q, "imageId": "n1", "answer": a, "types": {"structural": s, "semantic": "x"}}
        for key, (q, a, s) in questions.items()
    }
    write(folder / "llava_gqa_testdev_balanced.jsonl", tuple(lines))
    write(folder / "data/testdev_balanced_questions.json", published)
    picture(folder / "data/images/n1.jpg")


def vizwiz(root: Path) -> None:
    folder = root / "vizwiz"
    given = (
        ("a.jpg", "What is this?", "unanswerable", ten(("unanswerable", 9), ("blurry", 1))),
        ("b.jpg", "What color?", "other", ten(("red", 2), ("rose", 8))),
    )
    asked = [
        {
            "image": name,
            "question": question,
            "answer_type": kind,
            "answerable": 1,
            "answers": [{"answer": answer, "answer_confidence": "yes"} for answer in answers],
        }
        for name, question, kind, answers in given
    ]
    write(folder / "val.json", asked)
    write(folder / "test.json", [{"image": "c.jpg", "question": "What?"}])
    for name in ("val/a.jpg", "val/b.jpg", "test/c.jpg"):
        picture(folder / name)


def textvqa(root: Path) -> None:
    folder = root / "textvqa"
    given = (("What year?", ten(("1999", 4), ("1998", 6))), ("What brand?", ten(("Nike's", 10))))
    data = [
        {"question": q, "image_id": "f1", "question_id": n, "answers": answers, "image_classes": ["x"]}
        for n, (q, answers) in enumerate(given)
    ]
    write(folder / "TextVQA_0.5.1_val.json", {"dataset_type": "val", "data": data})
    text = "{}\nReference OCR token: NIKE, 1999\nAnswer the question using a single word or phrase."
    lines = [{"question_id": "f1", "image": "f1.jpg", "text": text.format(q)} for q, _ in reversed(given)]
    write(folder / "llava_textvqa_val_v051_ocr.jsonl", tuple(lines))
    picture(folder / "train_images/f1.jpg")


def pope(root: Path) -> None:
    labels = {"random": "yynn", "popular": "yn", "adversarial": "yn"}
    for category, said in labels.items():
        common = {"image": "COCO_val2014_1.jpg", "text": "Is there a dog in the image?"}
        lines = [
            {"question_id": n, "label": {"y": "yes", "n": "no"}[letter], **common}
            for n, letter in enumerate(said, 1)
        ]
        write(root / f"pope/coco/coco_pope_{category}.json", tuple(lines))
    picture(root / "pope/val2014/COCO_val2014_1.jpg")


def mme(root: Path) -> None:
    """Every subtask has one picture, ``count`` two; ``artwork`` keeps texts and pictures apart."""
    for subtask in (*PERCEPTION, *COGNITION):
        folder = root / "MME/MME_Benchmark_release_version" / subtask
        names = ("0001", "0002") if subtask == "count" else ("0001",)
        for name in names:
            apart = subtask == "artwork"
            picture(folder / ("images" if apart else "") / f"{name}.{'jpg' if apart else 'png'}")
            text = folder / ("questions_answers_YN" if apart else "") / f"{name}.txt"
            text.parent.mkdir(exist_ok=True)
            asked = "Is it {}? Please answer yes or no.\t{}\n"
            text.write_text(asked.format("red", "Yes") + asked.format("blue", "No"))


def mmvet(root: Path) -> None:
    entry = {"imagename": "v1_0.png", "question": "What is x?", "answer": "1<AND>-1", "question_source": "q"}
    write(root / "mm-vet/mm-vet.json", {"v1_0": {**entry, "capability": ["ocr", "math"]}})
    picture(root / "mm-vet/images/v1_0.png")


def scienceqa(root: Path) -> None:
    folder = root / "scienceqa"
    common = {"task": "closed choice", "grade": "grade2", "lecture": "", "solution": "", "split": "test"}
    problems = {
        "4": {"question": "Which is red?", "choices": ["this", "that"], "answer": 1, "hint": "Look.",
              "image": "image.png", "subject": "natural science"},
        "5": {"question": "Which rhymes?", "choices": ["cat", "dog"], "answer": 0, "hint": "",
              "image": None, "subject": "language science"},
        "6": {"question": "Which?", "choices": ["a", "b", "c"], "answer": 2, "hint": "",
              "image": "image.png", "subject": "social science"},
        "9": {"question": "Training?", "choices": ["a", "b"], "answer": 0, "hint": "",
              "image": None, "subject": "language science"},
    }  # fmt: skip
    write(folder / "problems.json", {key: problem | common for key, problem in problems.items()})
    write(folder / "pid_splits.json", {"train": ["9"], "val": [], "test": ["4", "5", "6"]})
    for key in ("4", "6"):
        picture(folder / f"images/test/{key}/image.png")


def mmbench(root: Path) -> None:
    """Question 1 in both orders of its options, question 2 with three options in one order."""
    path = root / "mmbench/mmbench_dev_20230712.tsv"
    path.parent.mkdir(parents=True)
    head = ("index", "question", "hint", *"ABCD", "answer", "category", "image", "source", "l2-category")
    red, blue = encoded("red"), encoded("blue")
    rows = [
        ("1", "Which color?", "", "red", "blue", "", "", "A", "color", red, "x", "y"),
        ("2", "Which\nshape?", "A hint.", "ring", "star", "cross", "", "C", "shape", blue, "x", "y"),
        ("1000001", "Which color?", "", "blue", "red", "", "", "B", "color", red, "x", "y"),
    ]
    cells = [["".join(('"', cell, '"')) if "\n" in cell else cell for cell in row] for row in rows]
    path.write_text("\n".join("\t".join(row) for row in (head, *cells)) + "\n")


def seed(root: Path) -> None:
    folder = root / "seed_bench"
    options = {f"choice_{letter}": f"option {letter}" for letter in "abcd"}
    questions = [
        {"question_id": "101", "question_type_id": 1, "question": "What scene?", "answer": "B",
         "data_id": "1_2", "data_type": "image", **options},
        {"question_id": "102", "question_type_id": 10, "question": "What is done?", "answer": "D",
         "data_id": "3.mp4", "data_type": "video", "segment": [0, 1], **options},
    ]  # fmt: skip
    types = {"Scene Understanding": 1, "Action Recognition": 10}
    write(folder / "SEED-Bench.json", {"questions": questions, "question_type": types})
    lines = (
        {"question_id": 101, "image": "SEED-Bench-image/1_2", "text": "..."},
        {"question_id": 102, "image": "SEED-Bench-video-image/102.png", "text": "..."},
    )
    write(folder / "llava-seed-bench.jsonl", lines)
    picture(folder / "SEED-Bench-video-image/102.png")
    picture(folder / "SEED-Bench-image/1_2.png")
    (folder / "SEED-Bench-image/1_2.png").rename(
        folder / "SEED-Bench-image/1_2"
    )  # published without a suffix


FOLDERS = {
    maker.__name__: maker
    for maker in (vqav2, gqa, vizwiz, textvqa, pope, mme, mmvet, scienceqa, mmbench, seed)
}
