"""Options of the commands, each declared once."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from star_export.errors import SettingsError
from star_export.specs import DEFAULT_KEEP

# Shared by several commands.
BundleArgument = Annotated[Path, typer.Argument(metavar="DIR", help="A bundle made by `star-export build`.")]
BackendOption = Annotated[
    str,
    typer.Option("--backend", help="What runs it: onnxruntime[-cuda], tensorrt or tensorrt-rtx."),
]
PluginLibraryOption = Annotated[
    Path | None,
    typer.Option("--plugin-library", help="The shared library, for engines with `--plugins library`."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else on stdout.")]
ThreadsOption = Annotated[
    int | None, typer.Option("--threads", min=1, help="CPU threads; all cores by default.")
]
SourceOption = Annotated[
    str | None,
    typer.Option("--model", "-m", help="Where the source checkpoint is now.  [default: see manifest]"),
]
RunKeepOption = Annotated[
    int | None, typer.Option("--keep", help="Visual tokens after stage 2.  [default: the bundle's]")
]
KeepsOption = Annotated[
    list[int] | None,
    typer.Option("--keep", help="Visual tokens after stage 2; repeat for more.  [default: the bundle's]"),
]
ImageOption = Annotated[Path, typer.Option("--image", "-i", help="The picture: PNG, JPEG, WebP, ...")]
PromptOption = Annotated[
    str, typer.Option("--prompt", "-p", help="The question; with `<image>` in it, the whole prompt as it is.")
]

# star-export build
ModelOption = Annotated[
    str | None, typer.Option("--model", "-m", help="llava-1.5-7b, llava-1.5-13b, a hub id or a local folder.")
]
RevisionOption = Annotated[
    str | None,
    typer.Option("--revision", metavar="REV", help="Branch, tag or commit of a hub id; NAME@REV does too."),
]
FromBundleOption = Annotated[
    Path | None,
    typer.Option(
        "--from-bundle",
        metavar="DIR",
        help="Add engines to this bundle, from its graphs, instead of --model.",
    ),
]
OutputOption = Annotated[
    Path | None, typer.Option("--output", "-o", help="Bundle folder to make.  [default: MODEL-star]")
]
KeepOption = Annotated[
    int | None, typer.Option("--keep", help=f"Visual tokens left after stage 2.  [default: {DEFAULT_KEEP}]")
]
KeepRatioOption = Annotated[
    float | None, typer.Option("--keep-ratio", help="The same as a share of all patches, such as 0.1.")
]
MaxKeepOption = Annotated[
    int | None, typer.Option("--max-keep", help="Largest --keep that `run` may ask for.  [default: --keep]")
]
DropRatioOption = Annotated[
    float, typer.Option("--drop-ratio", help="Share of patches that stage 1 drops (R).")
]
PruneLayerOption = Annotated[
    int | None,
    typer.Option("--prune-layer", help="Decoder layers on all stage-1 tokens (K).  [default: 0.4375 of all]"),
]
PruneOption = Annotated[
    bool, typer.Option("--prune/--no-prune", help="--no-prune builds the unpruned baseline.")
]
MaxTextTokensOption = Annotated[
    int, typer.Option("--max-text-tokens", help="Text tokens a prompt may have; sizes the KV caches.")
]
MaxNewTokensOption = Annotated[
    int, typer.Option("--max-new-tokens", help="Tokens that can be generated; sizes the KV caches.")
]
DTypeOption = Annotated[
    Literal["float32", "float16", "bfloat16"] | None,
    typer.Option(
        "--dtype",
        help="float32 for CPUs, float16 or bfloat16 for GPUs.  [default: float32; float16 for engines]",
    ),
]
Fp32LayersOption = Annotated[
    list[str] | None,
    typer.Option(
        "--fp32-layers",
        metavar="NAME",
        help="Keep this module in float32, such as lm_head or 'language_model.layers.*.mlp'; repeat for "
        "more. Attention and KV caches keep --dtype: TensorRT has no float32 attention kernel.",
    ),
]
BuildBackendOption = Annotated[
    str,
    typer.Option(
        "--backend",
        help="tensorrt or tensorrt-rtx also build engines; onnxruntime runs the graphs as they are.",
    ),
]
TargetsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--target",
        help="GPU that tensorrt-rtx builds for, such as sm89; repeat for more.  [default: sm80 and newer]",
    ),
]
MaxBatchOption = Annotated[
    int, typer.Option("--max-batch", help="Sequences an engine may decode at once; more takes more memory.")
]
PluginsOption = Annotated[
    Literal["aot", "library", "none"] | None,
    typer.Option(
        "--plugins",
        help="TopKGather baked into the engine, from a library, or as standard layers.  "
        "[default: aot; none for tensorrt-rtx, which has no plugins]",
    ),
]
TimingCacheOption = Annotated[
    Path | None,
    typer.Option(
        "--timing-cache", help="tensorrt: keep kernel timings here; the next build takes minutes less."
    ),
]
HardwareCompatibleOption = Annotated[
    bool,
    typer.Option(
        "--hardware-compatible",
        help="tensorrt: run on every GPU from sm80, without newer ones' kernels: slower.",
    ),
]
VersionCompatibleOption = Annotated[
    bool,
    typer.Option(
        "--version-compatible",
        help="tensorrt: run on newer versions of the same major number; fewer kernels: can be slower.",
    ),
]
WeightStreamingOption = Annotated[
    bool,
    typer.Option(
        "--weight-streaming",
        help="Weights may stay in host memory, for GPUs that are too small; they cross PCIe at every use.",
    ),
]
WorkspaceOption = Annotated[
    int | None,
    typer.Option(
        "--workspace",
        min=1,
        metavar="MIB",
        help="Scratch memory a kernel may take; less can rule out the fastest kernels.  [default: no limit]",
    ),
]
ChatTemplateOption = Annotated[
    Path | None,
    typer.Option(
        "--chat-template", metavar="FILE", help="Jinja file to use instead of the checkpoint's chat template."
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
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace an existing bundle.")]
CheckOption = Annotated[bool, typer.Option("--check", help="Check the bundle against PyTorch right away.")]

# star-export run
ImagesOption = Annotated[list[Path], typer.Option("--image", "-i", help="The picture: PNG, JPEG, WebP, ...")]
RunNewTokensOption = Annotated[
    int | None,
    typer.Option("--max-new-tokens", help="Tokens to generate at most.  [default: what the caches hold]"),
]
TemperatureOption = Annotated[float, typer.Option("--temperature", help="0 is greedy.")]
TopPOption = Annotated[
    float, typer.Option("--top-p", help="Sample from the most likely tokens that have this probability.")
]
SeedOption = Annotated[int | None, typer.Option("--seed", help="Makes sampling repeatable.")]
StopOption = Annotated[
    list[str] | None,
    typer.Option("--stop", help="End the answer before this text; repeat for more."),
]
VerifyOption = Annotated[bool, typer.Option("--verify", help="Hash the weights before loading.")]

# star-export check
CheckImagesOption = Annotated[
    list[Path] | None, typer.Option("--image", "-i", help="Check with this picture; repeat for more.")
]
ProbesOption = Annotated[
    int, typer.Option("--probes", min=1, help="Built-in pictures, when no --image is given.")
]
CheckNewTokensOption = Annotated[
    int, typer.Option("--max-new-tokens", min=1, help="Tokens to decode and compare.")
]
PolygraphyOption = Annotated[
    bool,
    typer.Option(
        "--polygraphy", help="Compare the runtimes with each other in Polygraphy, instead of with PyTorch."
    ),
]
ScoresOption = Annotated[
    bool,
    typer.Option(
        "--scores",
        help="Show how the scores of both stages are spread, instead; fails where they are uniform.",
    ),
]
JUnitOption = Annotated[Path | None, typer.Option("--junit", help="Write JUnit XML here.")]

# star-export bench
BaselineOption = Annotated[
    Path | None,
    typer.Option("--baseline", help="The --no-prune bundle.  [default: build one, remove it after]"),
]
SidesOption = Annotated[
    list[str] | None,
    typer.Option("--side", help="star, unpruned, hf-sdpa, hf-eager; repeat.  [default: all]"),
]
RepeatsOption = Annotated[int, typer.Option("--repeats", min=1, help="Measured rounds.")]
WarmupOption = Annotated[int, typer.Option("--warmup", min=0, help="Rounds before them.")]
BenchNewTokensOption = Annotated[
    int, typer.Option("--max-new-tokens", min=1, help="Tokens to decode in each round.")
]

# star-export eval and compare
TaskOption = Annotated[str, typer.Option("--task", help="What is asked: shapes.")]
SplitOption = Annotated[str, typer.Option("--split", help="train, validation or test.")]
TaskSeedOption = Annotated[int, typer.Option("--seed", min=0, help="Seed of the questions.")]
LimitOption = Annotated[
    int | None, typer.Option("--limit", help="Questions to ask.  [default: the whole split]")
]
EvalKeepsOption = Annotated[
    list[int] | None,
    typer.Option("--keep", help="Budget to score; repeat for more.  [default: the bundle's]"),
]
AloneOption = Annotated[
    bool, typer.Option("--no-baseline", help="Score the bundle alone; needs no source checkpoint.")
]
AnswersOption = Annotated[
    Path | None,
    typer.Option(
        "--answers",
        metavar="FILE",
        help="Every answer, a line of JSON each.  [default: DIR.TASK-SPLIT-SEED.jsonl, beside the bundle]",
    ),
]
ResumeOption = Annotated[bool, typer.Option("--resume", help="Go on where a killed run was.")]
MinAccuracyOption = Annotated[
    float | None,
    typer.Option("--min-accuracy", min=0, max=1, help="Fail when a budget answers a smaller share right."),
]
MinRetentionOption = Annotated[
    float | None,
    typer.Option(
        "--min-retention", min=0, help="Fail when a budget keeps a smaller share of the unpruned accuracy."
    ),
]
CompareModelOption = Annotated[
    str, typer.Option("--model", "-m", help="llava-1.5-7b, llava-1.5-13b, a hub id or a local folder.")
]
CompareLimitOption = Annotated[int, typer.Option("--limit", help="Questions to ask.")]
CompareKeepsOption = Annotated[
    list[int] | None,
    typer.Option("--keep", help="Budget; repeat for more.  [default: the paper's 50, 20, 10 and 5 %]"),
]
CompareDTypeOption = Annotated[
    Literal["float32", "float16"], typer.Option("--dtype", help="Element type of the bundles.")
]
PageOption = Annotated[
    Path, typer.Option("--output", "-o", help="Page to write; the plot is put beside it, as PNG.")
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
RepositoryOption = Annotated[Path, typer.Option("--output", "-o", help="Model repository to make.")]
ServeBackendOption = Annotated[
    str | None,
    typer.Option("--backend", help="What runs it.  [default: the bundle's engines, else onnxruntime]"),
]
KVCacheOption = Annotated[
    int,
    typer.Option(
        "--kv-cache", min=1, metavar="MIB", help="Memory for KV caches; as many slots as fit are made."
    ),
]
MaxSlotsOption = Annotated[
    int, typer.Option("--max-slots", min=1, help="Requests that are decoded at once, at most.")
]
QueueOption = Annotated[int, typer.Option("--queue", min=1, help="Requests that may wait for a slot.")]
ServeTimeoutOption = Annotated[
    float, typer.Option("--timeout", min=0.001, help="Seconds that a request may take, waiting included.")
]
FeatureCacheOption = Annotated[
    int,
    typer.Option("--feature-cache", min=0, metavar="MIB", help="Memory for the features of pictures seen."),
]
OverwriteRepositoryOption = Annotated[
    bool, typer.Option("--overwrite", help="Replace an older model repository.")
]
ServeOption = Annotated[bool, typer.Option("--serve", help="Start tritonserver on it right away.")]
ServerOptionsArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="[-- OPTIONS]", help="With --serve: further options of tritonserver."),
]
UrlArgument = Annotated[
    str, typer.Argument(metavar="URL", help="Triton's gRPC port, such as localhost:8001.")
]
ClientTimeoutOption = Annotated[
    float, typer.Option("--timeout", min=0.001, help="Seconds to wait for each piece of the answer.")
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
