"""Options of the commands, each declared once."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from star_export.errors import SettingsError
from star_export.specs import Keep


def parse_keep(text: str) -> Keep:
    """``64``, of the last stage, or ``128,14``, of every one."""
    try:
        numbers = tuple(map(int, text.split(",")))
    except ValueError as error:
        raise typer.BadParameter(
            f"{text!r} is no number of visual tokens, nor a list such as 128,14 of one for each stage"
        ) from error
    return numbers[0] if len(numbers) == 1 else numbers


# Shared by several commands.
BundleArgument = Annotated[Path, typer.Argument(metavar="DIR", help="A bundle made by `star-export build`.")]
BackendOption = Annotated[
    str,
    typer.Option(
        "--backend", metavar="NAME", help="What runs it: onnxruntime[-cuda], openvino or tensorrt[-rtx]."
    ),
]
PluginLibraryOption = Annotated[
    Path | None,
    typer.Option(
        "--plugin-library", metavar="FILE", help="The shared library, for engines with `--plugins library`."
    ),
]
JsonOption = Annotated[
    bool, typer.Option("--json", metavar="", help="Print one JSON object and nothing else on stdout.")
]
ThreadsOption = Annotated[
    int | None, typer.Option("--threads", min=1, metavar="N", help="CPU threads; all cores by default.")
]
SourceOption = Annotated[
    str | None,
    typer.Option(
        "--model", "-m", metavar="NAME", help="Where the source checkpoint is now.  [default: see manifest]"
    ),
]
RunKeepOption = Annotated[
    Any,  # int | tuple[int, ...] | None, which typer does not know
    typer.Option(
        "--keep",
        metavar="N",
        parser=parse_keep,
        help="Visual tokens of all pictures after the last stage, or 128,14 for every stage.  "
        "[default: the bundle's]",
    ),
]
KeepsOption = Annotated[
    list[Any] | None,
    typer.Option(
        "--keep",
        metavar="N",
        parser=parse_keep,
        help="Visual tokens after the last stage, or 128,14 for every stage; repeat for more.  "
        "[default: the bundle's]",
    ),
]
ImageOption = Annotated[
    Path, typer.Option("--image", "-i", metavar="FILE", help="The picture: PNG, JPEG, WebP, ...")
]
PromptOption = Annotated[
    str,
    typer.Option(
        "--prompt",
        "-p",
        metavar="TEXT",
        help="The question, which the pictures open; with `<image>` for each, the whole prompt as it is.",
    ),
]
OnePromptOption = Annotated[
    str | None,
    typer.Option("--prompt", "-p", metavar="TEXT", help="The question, which the pictures open."),
]
MessagesOption = Annotated[
    str | None,
    typer.Option(
        "--messages", metavar="FILE|JSON", help="Instead of it, a conversation: a list of messages."
    ),
]
LastQuestionOption = Annotated[
    bool,
    typer.Option(
        "--reprune/--no-reprune",
        help="Its last question chooses which visual tokens stay; or the one with the last picture.",
    ),
]
EndTokensOption = Annotated[
    list[str] | None,
    typer.Option(
        "--end-token",
        metavar="TEXT",
        help="This token ends an answer too, such as `<|eot_id|>`; repeat for more.",
    ),
]

# star-export run
ImagesOption = Annotated[
    list[Path],
    typer.Option(
        "--image",
        "-i",
        metavar="FILE",
        help="A picture: PNG, JPEG, WebP, ...; repeat for more, in the order of their places.",
    ),
]
RunNewTokensOption = Annotated[
    int | None,
    typer.Option(
        "--max-new-tokens", metavar="N", help="Tokens to generate at most.  [default: what the caches hold]"
    ),
]
TemperatureOption = Annotated[float, typer.Option("--temperature", metavar="X", help="0 is greedy.")]
TopPOption = Annotated[
    float,
    typer.Option(
        "--top-p", metavar="X", help="Sample from the most likely tokens that have this probability."
    ),
]
SeedOption = Annotated[int | None, typer.Option("--seed", metavar="N", help="Makes sampling repeatable.")]
StopOption = Annotated[
    list[str] | None,
    typer.Option("--stop", metavar="TEXT", help="End the answer before this text; repeat for more."),
]
SchemaOption = Annotated[
    str | None,
    typer.Option("--schema", metavar="FILE|JSON", help="The answer is JSON that this JSON schema describes."),
]
TopLogprobsOption = Annotated[
    int | None,
    typer.Option(
        "--top-logprobs",
        metavar="N",
        help="Add every token's logprob and those of the N most likely to --json; 0 to 20.",
    ),
]
VerifyOption = Annotated[bool, typer.Option("--verify", metavar="", help="Hash the weights before loading.")]

# star-export chat
ChatImagesOption = Annotated[
    list[Path] | None,
    typer.Option("--image", "-i", metavar="FILE", help="A picture of the first question; repeat for more."),
]
RepruneOption = Annotated[
    bool,
    typer.Option(
        "--reprune",
        metavar="",
        help="Decide anew at every question which visual tokens stay; reads the whole conversation again.",
    ),
]

# star-export check
CheckImagesOption = Annotated[
    list[Path] | None,
    typer.Option("--image", "-i", metavar="FILE", help="Check with this picture; repeat for more."),
]
ProbesOption = Annotated[
    int, typer.Option("--probes", min=1, metavar="N", help="Built-in pictures, when no --image is given.")
]
CheckNewTokensOption = Annotated[
    int, typer.Option("--max-new-tokens", min=1, metavar="N", help="Tokens to decode and compare.")
]
PolygraphyOption = Annotated[
    bool,
    typer.Option(
        "--polygraphy",
        metavar="",
        help="Compare the runtimes with each other in Polygraphy, instead of with PyTorch.",
    ),
]
ScoresOption = Annotated[
    bool,
    typer.Option(
        "--scores",
        metavar="",
        help="Show how the scores of every stage are spread, instead; fails where they are uniform.",
    ),
]
JUnitOption = Annotated[Path | None, typer.Option("--junit", metavar="FILE", help="Write JUnit XML here.")]

# star-export bench
BundlesArgument = Annotated[
    list[Path],
    typer.Argument(metavar="DIR...", help="A bundle, and others of its model to compare with it."),
]
BaselineOption = Annotated[
    Path | None,
    typer.Option(
        "--baseline", metavar="DIR", help="The --no-prune bundle.  [default: build one, remove it after]"
    ),
]
SidesOption = Annotated[
    list[str] | None,
    typer.Option(
        "--side",
        metavar="NAME",
        help="pruned, unpruned, hf-sdpa, hf-eager; repeat.  [default: all; pruned beside other bundles]",
    ),
]
RepeatsOption = Annotated[int, typer.Option("--repeats", min=1, metavar="N", help="Measured rounds.")]
WarmupOption = Annotated[int, typer.Option("--warmup", min=0, metavar="N", help="Rounds before them.")]
BenchNewTokensOption = Annotated[
    int, typer.Option("--max-new-tokens", min=1, metavar="N", help="Tokens to decode in each round.")
]

# star-export eval and compare
TaskOption = Annotated[
    str,
    typer.Option("--task", metavar="NAME", help="What is asked: shapes, numbers or a benchmark."),
]
DataOption = Annotated[
    Path | None,
    typer.Option("--data", metavar="DIR", help="Folder with a benchmark's files; see docs/benchmarks.md."),
]
SplitOption = Annotated[str, typer.Option("--split", metavar="NAME", help="train, validation or test.")]
EvalSplitOption = Annotated[
    str | None,
    typer.Option("--split", metavar="NAME", help="Which of the task's questions.  [default: its usual ones]"),
]
TaskSeedOption = Annotated[int, typer.Option("--seed", min=0, metavar="N", help="Seed of the questions.")]
LimitOption = Annotated[
    int | None, typer.Option("--limit", metavar="N", help="Questions to ask.  [default: the whole split]")
]
BatchOption = Annotated[
    int, typer.Option("--batch", min=1, metavar="N", help="Questions that are decoded at once.")
]
AloneOption = Annotated[
    bool,
    typer.Option("--no-baseline", metavar="", help="Score the bundle alone; needs no source checkpoint."),
]
AnswersOption = Annotated[
    Path | None,
    typer.Option(
        "--answers",
        metavar="FILE",
        help="Every answer, a line of JSON each.  [default: DIR.TASK-SPLIT-SEED.jsonl, beside the bundle]",
    ),
]
ResumeOption = Annotated[bool, typer.Option("--resume", metavar="", help="Go on where a killed run was.")]
MinAccuracyOption = Annotated[
    float | None,
    typer.Option(
        "--min-accuracy", min=0, max=1, metavar="X", help="Fail when a budget answers a smaller share right."
    ),
]
MinRetentionOption = Annotated[
    float | None,
    typer.Option(
        "--min-retention",
        min=0,
        metavar="X",
        help="Fail when a budget keeps a smaller share of the unpruned accuracy.",
    ),
]
CompareModelOption = Annotated[
    str,
    typer.Option(
        "--model", "-m", metavar="NAME", help="A short name such as llava-1.5-7b, a hub id or a folder."
    ),
]
CompareLimitOption = Annotated[
    int | None,
    typer.Option(
        "--limit", metavar="N", help="Questions to ask.  [default: 350, or all where there are fewer]"
    ),
]
MethodsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--method", metavar="NAME", help="star, spread, balanced-text, fastv, ...; repeat.  [default: all]"
    ),
]
AveragesOption = Annotated[
    list[int] | None,
    typer.Option(
        "--average",
        metavar="N",
        help="Visual tokens per layer to compare at; repeat for more.  [default: 128, 64, 32, 16]",
    ),
]
CompareKeepsOption = Annotated[
    list[int] | None,
    typer.Option(
        "--keep",
        metavar="N",
        help="STAR's budget to compare at its average of; repeat for more.  "
        "[default: the paper's 50, 20, 10 and 5 %; none beside --average]",
    ),
]
CompareQuantizeOption = Annotated[
    list[str] | None,
    typer.Option(
        "--quantize", metavar="TYPE", help="Weights in int4, int8, ... too, beside --dtype; repeat for more."
    ),
]
CompareDTypeOption = Annotated[
    Literal["float32", "float16"],
    typer.Option("--dtype", metavar="TYPE", help="Element type of the bundles."),
]
PageOption = Annotated[
    Path,
    typer.Option("--output", "-o", metavar="FILE", help="Page to write; the plot is put beside it, as PNG."),
]
CompareAnswersOption = Annotated[
    Path | None,
    typer.Option(
        "--answers", metavar="FILE", help="Every answer, a line of JSON each.  [default: OUTPUT.jsonl]"
    ),
]

# star-export show
FigureOption = Annotated[
    Path, typer.Option("--output", "-o", metavar="FILE", help="The picture (.png) or page (.html) to write.")
]

# star-export triton and client
RepositoryOption = Annotated[
    Path, typer.Option("--output", "-o", metavar="DIR", help="Model repository to make.")
]
ServeBackendOption = Annotated[
    str | None,
    typer.Option(
        "--backend", metavar="NAME", help="What runs it.  [default: the bundle's engines, else onnxruntime]"
    ),
]
KVCacheOption = Annotated[
    int,
    typer.Option(
        "--kv-cache", min=1, metavar="MIB", help="Memory for KV caches; as many slots as fit are made."
    ),
]
MaxSlotsOption = Annotated[
    int, typer.Option("--max-slots", min=1, metavar="N", help="Requests that are decoded at once, at most.")
]
QueueOption = Annotated[
    int, typer.Option("--queue", min=1, metavar="N", help="Requests that may wait for a slot.")
]
ServeTimeoutOption = Annotated[
    float,
    typer.Option(
        "--timeout", min=0.001, metavar="SECONDS", help="Seconds that a request may take, waiting included."
    ),
]
FeatureCacheOption = Annotated[
    int,
    typer.Option("--feature-cache", min=0, metavar="MIB", help="Memory for the features of pictures seen."),
]
PrefixCacheOption = Annotated[
    int,
    typer.Option(
        "--prefix-cache", min=0, metavar="MIB", help="Host memory for the KV caches of conversations."
    ),
]
OverwriteRepositoryOption = Annotated[
    bool, typer.Option("--overwrite", metavar="", help="Replace an older model repository.")
]
ServeOption = Annotated[
    bool, typer.Option("--serve", metavar="", help="Start tritonserver on it right away.")
]
ServerOptionsArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="[-- OPTIONS]", help="With --serve: further options of tritonserver."),
]
UrlArgument = Annotated[
    str, typer.Argument(metavar="URL", help="Triton's gRPC port, such as localhost:8001.")
]
ClientTimeoutOption = Annotated[
    float,
    typer.Option(
        "--timeout", min=0.001, metavar="SECONDS", help="Seconds to wait for each piece of the answer."
    ),
]


def refuse(context: typer.Context, names: tuple[str, ...], why: str) -> None:
    """Refuse options of ``names`` that were given.

    Raises:
        SettingsError: With the first of them, and ``why``.
    """
    for name in names:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise SettingsError(f"--{name.replace('_', '-')} {why}")
