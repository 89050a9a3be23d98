"""Options of ``star-export build``, in the panels in which its help shows them."""

from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from star_export.specs import (
    BLOCKS,
    DEFAULT_KEEP,
    DEFAULT_TILED_KEEP,
    QUANTIZED_TYPES,
    STAGE1_SCORES,
    STAGE2_SCORES,
    DType,
)

_model = partial(typer.Option, rich_help_panel="Model")
_pruning = partial(typer.Option, rich_help_panel="Pruning")
_sizes = partial(typer.Option, rich_help_panel="Sizes of KV caches and engines", metavar="N")
# Their defaults are told in the text, on one line with it.
_told = partial(_sizes, show_default=False)
_precision = partial(typer.Option, rich_help_panel="Precision")
_engines = partial(typer.Option, rich_help_panel="Engines")
_output = partial(typer.Option, rich_help_panel="Output")


def parse_capacities(text: str) -> tuple[int, ...]:
    """``1024,2048``: tokens of text and answer."""
    try:
        return tuple(map(int, text.split(",")))
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is no list of numbers of tokens such as 1024,2048") from error


ModelOption = Annotated[
    str | None,
    _model("--model", "-m", metavar="NAME", help="A short name such as llava-1.5-7b, a hub id or a folder."),
]
RevisionOption = Annotated[
    str | None,
    _model("--revision", metavar="REV", help="Commit, tag or branch; or NAME@REV."),
]
ChatTemplateOption = Annotated[
    Path | None,
    _model("--chat-template", metavar="FILE", help="Jinja file instead of the model's own."),
]
BuildEndTokensOption = Annotated[
    list[str] | None,
    _model("--end-token", metavar="TEXT", help="Ends an answer too; repeat for more."),
]
FromBundleOption = Annotated[
    Path | None,
    _model("--from-bundle", metavar="DIR", help="Instead: add engines to this bundle."),
]

KeepOption = Annotated[
    int | None,
    _pruning(
        "--keep",
        metavar="N",
        help="Visual tokens of a request after stage 2.  "
        f"[default: {DEFAULT_KEEP}; {DEFAULT_TILED_KEEP} of cut pictures]",
    ),
]
KeepRatioOption = Annotated[
    float | None,
    _pruning("--keep-ratio", metavar="X", help="Or their share of all."),
]
MaxKeepOption = Annotated[
    int | None,
    _pruning("--max-keep", metavar="N", help="Largest --keep that `run` may ask for.  [default: --keep]"),
]
DropRatioOption = Annotated[
    float, _pruning("--drop-ratio", metavar="R", help="Share of patches that stage 1 drops.")
]
PruneLayerOption = Annotated[
    int | None,
    _pruning(
        "--prune-layer",
        metavar="K",
        help="Decoder layers before stage 2.  [default: 0.4375 of all]",
    ),
]
KeepMassOption = Annotated[
    float | None,
    _pruning(
        "--keep-mass",
        metavar="X",
        help="Keep this share of the scores' sum.",
    ),
]
ProportionalOption = Annotated[
    bool,
    _pruning(
        "--proportional",
        metavar="",
        help="What is kept counts for what is not.",
        show_default=False,
    ),
]
ScheduleOption = Annotated[
    str | None,
    _pruning(
        "--schedule",
        metavar="TEXT",
        help="`128@0,14@14` (tokens, at layer; 0: before the decoder), star, fast-N, or balanced-N.  "
        "[default: star]",
    ),
]
Stage1Option = Annotated[
    str | None,
    _pruning(
        "--stage1",
        metavar="SCORE",
        help=f"Score before the decoder: {', '.join(STAGE1_SCORES)}.",
    ),
]
Stage2Option = Annotated[
    str | None,
    _pruning(
        "--stage2",
        metavar="SCORE",
        help=f"Score inside: {', '.join(STAGE2_SCORES)}.",
    ),
]
PruneOption = Annotated[
    bool, _pruning("--prune/--no-prune", metavar="", help="Or no pruning at all.", show_default=False)
]

MaxImagesOption = Annotated[int, _told("--max-images", help="Pictures of a request.  [default: 1]")]
MaxTilesOption = Annotated[
    int | None,
    _sizes("--max-tiles", help="Tiles of a picture.  [default: the largest's]"),
]
MaxImageTokensOption = Annotated[
    int | None,
    _sizes(
        "--max-image-tokens",
        help="Visual tokens in all.  [default: what fits]",
    ),
]
MaxTextTokensOption = Annotated[
    int, _told("--max-text-tokens", help="Text tokens of a prompt.  [default: 512]")
]
MaxNewTokensOption = Annotated[int, _told("--max-new-tokens", help="Tokens to generate.  [default: 512]")]
MaxBatchOption = Annotated[int, _told("--max-batch", help="Sequences of a decode step.  [default: 8]")]

CapacitiesOption = Annotated[
    Any,  # tuple[int, ...] | None, which typer does not know
    _sizes("--capacities", parser=parse_capacities, help="Engines also for less text and answer: 256,512."),
]

DTypeOption = Annotated[
    DType | None,
    _precision(
        "--dtype",
        metavar="TYPE",
        help="float32, float16 or bfloat16.  [default: float32; float16 for engines]",
    ),
]
Fp32LayersOption = Annotated[
    list[str] | None,
    _precision(
        "--fp32-layers",
        metavar="NAME",
        help="Keep a module in float32; repeat for more.",
    ),
]

QuantizeOption = Annotated[
    str | None,
    _precision("--quantize", metavar="TYPE", help=f"Weights in {', '.join(QUANTIZED_TYPES)}."),
]
QuantizeBlockOption = Annotated[
    int | None,
    _precision(
        "--quantize-block",
        metavar="N",
        help=f"Weights to a scale: {BLOCKS[-1]}, or 64, 32.",
    ),
]
QuantizeVisionOption = Annotated[
    bool, _precision("--quantize-vision", metavar="", help="The vision tower's too.")
]
QuantizeEmbeddingOption = Annotated[
    bool, _precision("--quantize-embedding", metavar="", help="The rows of tokens too, in int8.")
]
CalibrateOption = Annotated[
    Path | None,
    _precision("--calibrate", metavar="DIR", help="In 4 bits, by GPTQ on these pictures."),
]

BuildBackendOption = Annotated[
    str,
    _engines(
        "--backend",
        metavar="NAME",
        help="tensorrt[-rtx] build engines; onnxruntime runs the graphs.",
    ),
]
TargetsOption = Annotated[
    list[str] | None,
    _engines(
        "--target",
        metavar="SM",
        help="tensorrt-rtx: GPU to build for, such as sm89; repeat for more.  [default: sm80 and newer]",
    ),
]
PluginsOption = Annotated[
    Literal["aot", "library", "none"] | None,
    _engines(
        "--plugins",
        metavar="KIND",
        help="tensorrt: TopKGather in the engine (aot), from a library, or as layers (none).  [default: aot]",
    ),
]
BuildPluginLibraryOption = Annotated[
    Path | None,
    _engines("--plugin-library", metavar="FILE", help="The library of `--plugins library`."),
]
WeightsOption = Annotated[
    Literal["shared", "baked"] | None,
    _engines(
        "--weights",
        metavar="KIND",
        help="One copy for all engines (shared), or one in each (baked).",
    ),
]
TimingCacheOption = Annotated[
    Path | None,
    _engines(
        "--timing-cache",
        metavar="FILE",
        help="tensorrt: keep kernel timings here.",
    ),
]
HardwareCompatibleOption = Annotated[
    bool,
    _engines(
        "--hardware-compatible",
        metavar="",
        help="tensorrt: for all GPUs from sm80; slower: no kernels of newer ones.",
    ),
]
VersionCompatibleOption = Annotated[
    bool,
    _engines(
        "--version-compatible",
        metavar="",
        help="tensorrt: for newer versions of the same major number; can be slower.",
    ),
]
WeightStreamingOption = Annotated[
    bool,
    _engines(
        "--weight-streaming",
        metavar="",
        help="Weights may stay in host memory and cross PCIe at every use.",
    ),
]
WorkspaceOption = Annotated[
    int | None,
    _engines(
        "--workspace",
        min=1,
        metavar="MIB",
        help="Scratch memory a kernel may take.  [default: no limit]",
    ),
]

OutputOption = Annotated[
    Path | None,
    _output("--output", "-o", metavar="DIR", help="Bundle folder to make.  [default: MODEL-star]"),
]
OverwriteOption = Annotated[bool, _output("--overwrite", metavar="", help="Replace an existing bundle.")]
CheckOption = Annotated[
    bool, _output("--check", metavar="", help="Check the bundle against PyTorch right away.")
]
