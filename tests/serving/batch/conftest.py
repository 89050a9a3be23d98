"""Pictures that rows name."""

from pathlib import Path

import pytest
from PIL import Image

SHAPES = Path(__file__).parents[3] / "docs/shapes.png"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder with pictures."""
    folder = tmp_path / "data"
    folder.mkdir()
    with Image.open(SHAPES) as picture:
        picture.save(folder / "a.png")
        picture.rotate(90).save(folder / "b.png")
    return folder
