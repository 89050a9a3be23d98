"""``star-export show``."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from star_export.cli import options as opt
from star_export.cli.app import app
from star_export.cli.output import check_target, err, print_json, quiet_libraries
from star_export.errors import SettingsError

if TYPE_CHECKING:
    from PIL.Image import Image

    from star_export.answer.pipeline import Pipeline
    from star_export.show.scores import Scores

EPILOG = """
**Examples**

`star-export show llava-7b --image dog.png --prompt "What is this?"`

`star-export show llava-7b --image dog.png --prompt "What is this?" --keep 288 --keep 29 -o dog.html`
"""


@app.command(epilog=EPILOG)
def show(
    folder: opt.BundleArgument,
    image: opt.ImageOption,
    prompt: opt.PromptOption,
    keep: opt.KeepsOption = None,
    output: opt.FigureOption = Path("show.png"),
    max_new_tokens: opt.RunNewTokensOption = None,
    json: opt.JsonOption = False,
) -> None:
    """Draw which parts of a picture each stage keeps, by which scores, and what the answer is."""
    quiet_libraries()
    check_figure("--output", output)
    from star_export.bundle import open_bundle
    from star_export.preprocessing import load_image
    from star_export.show.scores import ScoreReader

    picture = load_image(image)
    bundle = open_bundle(folder)
    with err.status("loading the graphs") as status, ScoreReader(bundle) as reader:
        answers = []
        for budget in [reader.pipeline.budget(k) for k in keep or (None,)]:
            status.update(f"answering with {budget} visual tokens")
            answers.append(reader.read(picture, prompt, keep=budget, max_new_tokens=max_new_tokens))
    write_figure(output, reader.pipeline, picture, prompt, answers)
    if json:
        print_json({"output": str(output), "prompt": prompt, "answers": [a.to_dict() for a in answers]})
        return
    for answer in answers:
        print(f"{len(answer.stage2.kept)} visual tokens: {answer.result.text}")
    print(f"drawn in {output}")


def check_figure(option: str, output: Path) -> None:
    """Refuse what cannot be drawn or written, before any graph runs.

    Raises:
        SettingsError: If it is no .png or .html file, or in no folder.
        PlatformError: If the ``export`` extra is missing.
    """
    from star_export.build import require_export_extra

    if output.suffix.lower() not in (".png", ".html"):
        raise SettingsError(f"{option} must end in .png or .html, got {output}")
    check_target(option, output)
    require_export_extra("onnx")


def write_figure(
    output: Path, pipeline: "Pipeline", picture: "Image", prompt: str, answers: "Sequence[Scores]"
) -> None:
    """Draw what was kept of a picture, in the form that the file's extension says."""
    from star_export.files import atomic_open
    from star_export.preprocessing.images import visible_pixels
    from star_export.show.figure import draw_sheet
    from star_export.show.page import png, render_page

    seen = visible_pixels(picture, pipeline.image_spec)
    if output.suffix.lower() == ".html":
        content = render_page(seen, prompt, answers).encode()
    else:
        content = png(draw_sheet(seen, prompt, answers))
    with atomic_open(output) as file:
        file.write(content)
