"""Write one picture of the task ``shapes`` to a file and print questions about it with their answers.

Example:
    python -m star_export.evaluation.shapes picture.png --index 3 --size 384
"""

import argparse
from pathlib import Path

from PIL import Image

from star_export.evaluation.shapes.questions import KINDS, ask
from star_export.evaluation.shapes.scenes import CANVAS, SPLITS, draw, random_scene, rng_of
from star_export.files import atomic_open

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Draw a picture to ask about.")
    parser.add_argument("file", type=Path)
    parser.add_argument("--split", choices=SPLITS, default="test")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--index", type=int, default=0)
    parser.add_argument("--size", type=int, default=CANVAS, help="side in pixels")
    arguments = parser.parse_args()
    rng = rng_of(arguments.split, arguments.seed, arguments.index)
    scene = random_scene(rng)
    with atomic_open(arguments.file) as file:
        Image.fromarray(draw(scene, size=arguments.size)).save(file, format="PNG")
    for kind in KINDS:
        if question := ask(scene, kind, rng):
            print(f"{question.text} {question.answer}")
