"""``star-export show``."""

from pathlib import Path

from star_export.cli import options as opt
from star_export.cli.app import app
from star_export.cli.output import check_figure, err, print_json, quiet_libraries

EPILOG = """
**Examples**

`star-export show llava-7b --image dog.png --prompt "What is this?"`

`star-export show llava-7b --image dog.png --prompt "What is this?" --keep 288 --keep 29 -o dog.html`

`star-export show onevision --image dog.png --image cat.png --prompt "Which is larger?"`
"""


@app.command(epilog=EPILOG)
def show(
    folder: opt.BundleArgument,
    image: opt.ImagesOption,
    prompt: opt.PromptOption,
    keep: opt.KeepsOption = None,
    output: opt.FigureOption = Path("show.png"),
    max_new_tokens: opt.RunNewTokensOption = None,
    json: opt.JsonOption = False,
) -> None:
    """Draw which parts of the pictures each stage keeps, by which scores, and what the answer is."""
    quiet_libraries()
    check_figure("--output", output)
    from star_export.bundle import open_bundle
    from star_export.preprocessing import load_image
    from star_export.show.draw import draw

    pictures = [load_image(path) for path in image]
    bundle = open_bundle(folder)
    with err.status("loading the graphs") as status:
        answers = draw(
            bundle,
            pictures,
            prompt,
            output,
            keep=keep or (None,),
            max_new_tokens=max_new_tokens,
            progress=lambda done, total: status.update(f"answer {done + 1} of {total}"),
        )
    if json:
        print_json({"output": str(output), "prompt": prompt, "answers": [a.to_dict() for a in answers]})
        return
    for answer in answers:
        print(f"{len(answer.stages[-1].kept)} visual tokens: {answer.result.text}")
    print(f"drawn in {output}")
