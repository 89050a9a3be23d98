"""``star-export inspect``."""

from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from star_export.cli.app import app
from star_export.cli.facts import images, pruning
from star_export.cli.options import BundleArgument, JsonOption
from star_export.cli.output import megabytes, out, print_json

if TYPE_CHECKING:
    from star_export.bundle import Bundle
    from star_export.specs import ExportSpec, ModelSpec

EPILOG = """
**Examples**

`star-export inspect llava-7b`

`star-export inspect llava-7b --json | jq .spec.schedule`

`star-export inspect llava-7b --json | jq '.reports[].state'`
"""


@app.command(epilog=EPILOG)
def inspect(folder: BundleArgument, json: JsonOption = False) -> None:
    """Show what is in a bundle, after hashing every file, and which reports are about what is there now."""
    from star_export.bundle import open_bundle
    from star_export.reports import read_reports

    bundle = open_bundle(folder, verify=True)
    reports = read_reports(bundle)
    if json:
        print_json({**bundle.manifest, "reports": [stored.to_dict() for stored in reports]})
        return
    _print_facts(bundle)
    _print_contract(bundle)
    _print_files(bundle)
    for stored in reports:
        out.print(escape(str(stored)), soft_wrap=True)


def _print_facts(bundle: "Bundle") -> None:
    from star_export.engines.tensorrt.facts import read_facts

    spec, model = bundle.spec, bundle.spec.model
    source = bundle.manifest["source"]
    facts = {
        "source": f"{source['model']} ({source['revision'] or 'by file hashes'})",
        "model": model.model_type,
        "vision": _tower(model),
        "pictures": images(spec),
        "decoder": f"{model.text.num_layers} layers, {model.text.num_heads} heads, "
        f"{model.text.num_kv_heads} KV heads, hidden size {model.text.hidden_size}",
        "dtype": _dtype(spec),
        "pruning": pruning(spec),
    }
    groups = [f"{len(group.layers)} layers x {group.capacity} tokens" for group in spec.groups]
    facts["KV caches"] = ", ".join((*groups, megabytes(spec.slot_bytes)))
    facts["made with"] = ", ".join(f"{tool} {found}" for tool, found in bundle.manifest["versions"].items())
    for backend in bundle.manifest.get("engines", {}):
        engines = read_facts(bundle, backend)
        weights = "shared" if engines.weights_files else "baked in"
        rooms = ", ".join(f"{room:,}" for room in (*(each.room for each in engines.smaller), spec.room))
        facts[backend] = (
            f"{engines.version} engines for {', '.join(engines.targets)}, weights {weights}, "
            f"room for {rooms} tokens of text and answer"
        )
    grid = Table.grid(padding=(0, 2))
    for name, fact in facts.items():
        grid.add_row(f"[bold]{name}[/bold]", fact)
    out.print(grid)


def _dtype(spec: "ExportSpec") -> str:
    kept = [f"float32 in {', '.join(spec.fp32_layers)}"] if spec.fp32_layers else []
    if how := spec.quantization:
        given = "" if how.layers is None else ", as the checkpoint has them"
        which = "all" if how.vision else "decoder"
        rows = ", rows of tokens int8" if how.embedding else ""
        kept.append(f"{which} weights {how.type} in blocks of {how.block}{given}{rows}")
    return ", ".join((spec.dtype, *kept))


def _tower(model: "ModelSpec") -> str:
    vision, kind = model.vision, model.vision.model_type.removesuffix("_vision_model").upper()
    whole = f"{vision.num_layers} {kind} layers, {vision.num_patches} patches of {vision.patch_size} px "
    return f"{whole}in {'tiles of ' if model.tiling else ''}{vision.image_size} px"


def _print_contract(bundle: "Bundle") -> None:
    table = Table("graph", "", "name", "dtype", "shape")
    for graph, io in bundle.contract.items():
        for side, tensors in (("in", io.inputs), ("out", io.outputs)):
            for tensor in tensors:
                layer = tensor.name.split(".")
                if len(layer) > 1 and layer[1].isdigit() and layer[1] != "0":
                    continue  # layer 0 stands for all
                name = tensor.name.replace(".0.", ".{i}.")
                table.add_row(graph, side, name, tensor.dtype, str(list(tensor.shape)).replace("'", ""))
    out.print(table)


def _print_files(bundle: "Bundle") -> None:
    table = Table("file", "size", "SHA-256", caption="every file matches its hash")
    for file in bundle.files:
        table.add_row(file.path, megabytes(file.bytes), file.sha256[:16])
    out.print(table)
