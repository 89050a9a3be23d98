"""The exported files: what is in them, what they point to, and that they load."""

import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file
from transformers import LlavaForConditionalGeneration

from star_export.bundle import open_bundle
from star_export.contract import DECODE, GRAPHS, PREFILL, VISION, TensorSpec, capacity_symbols, contract
from star_export.graphs.export import fake_module
from star_export.specs import EMBEDDING, ExportSpec
from tests.shapes import WIDE

VARIANTS: dict[str, dict[str, Any]] = {
    "mha": {"preset": "mha"},
    "gqa": {"preset": "gqa"},
    "mha unpruned": {"preset": "mha", "prune": False},
    "mha float16": {"preset": "mha", "dtype": "float16"},
}
PRUNED = [name for name in VARIANTS if "unpruned" not in name]
WEIGHTS = {VISION: "vision.safetensors", PREFILL: "decoder.safetensors", DECODE: "decoder.safetensors"}

SHARED_OPS = {
    "Add",
    "Attention",
    "Cast",
    "Concat",
    "MatMul",
    "Mul",
    "Reshape",
    "Sigmoid",
    "Slice",
    "Transpose",
}
SCORING_OPS = {"Expand", "ReduceMean", "Softmax", "TopKGather"}
LLAMA_OPS = {
    *("Gather", "LessOrEqual", "RMSNormalization", "RotaryEmbedding", "Shape", "TensorScatter", "Unsqueeze"),
}
SCATTER_OPS = {"GatherND", "Not", "Range", "ScatterElements", "Squeeze", "Where"}
#: Every kind that a graph of STAR may hold, and does in float16. TensorRT refuses NonZero, Compress and
#: CumSum; Loop, If and other data-dependent kinds would break static engines. Add a kind only after
#: TensorRT parsed it, as it does those of other scores in tests/engines/tensorrt/test_schedules.py.
ALLOWED_OPS = {
    VISION: SHARED_OPS | SCORING_OPS | {"Conv", "Gelu", "LayerNormalization"},
    PREFILL: SHARED_OPS | SCORING_OPS | LLAMA_OPS | SCATTER_OPS,
    DECODE: SHARED_OPS | LLAMA_OPS | {"Range", "Squeeze", "Sub"},
}
BODY_OPS = {"Constant", "GatherND", "IsNaN", "Shape", "TopK", "Unsqueeze", "Where"}


@dataclass(frozen=True)
class Exported:
    folder: Path
    checkpoint: Path
    spec: ExportSpec

    def path(self, graph: str) -> Path:
        return self.folder / "graphs" / f"{graph}.onnx"

    @cached_property
    def models(self) -> dict[str, onnx.ModelProto]:
        return {graph: onnx.load(self.path(graph), load_external_data=False) for graph in GRAPHS}

    def external(self, graph: str) -> Iterator[tuple[TensorProto, dict[str, str]]]:
        for tensor in self.models[graph].graph.initializer:
            if tensor.data_location == TensorProto.EXTERNAL:
                yield tensor, {entry.key: entry.value for entry in tensor.external_data}

    def slots(self, graph: str) -> list[onnx.NodeProto]:
        return [node for node in self.models[graph].graph.node if node.domain == "star"]


@pytest.fixture(scope="module", params=VARIANTS)
def exported(
    request: pytest.FixtureRequest, bundle: Callable[..., Path], checkpoint: Callable[[str], Path]
) -> Exported:
    variant = VARIANTS[request.param]
    folder = bundle(**variant)
    return Exported(folder, checkpoint(variant["preset"]), open_bundle(folder).spec)


@pytest.fixture(params=GRAPHS)
def graph(request: pytest.FixtureRequest) -> str:
    return request.param


def test_onnx_accepts_the_file(exported: Exported, graph: str, tmp_path: Path) -> None:
    # Of a copy: it refuses weights with a second hard link, as a Triton repository of the bundle makes them.
    shutil.copytree(exported.path(graph).parent, tmp_path / "graphs")
    onnx.checker.check_model(str(tmp_path / "graphs" / exported.path(graph).name), full_check=False)


def test_onnx_runtime_loads_the_file(exported: Exported, graph: str) -> None:
    session = ort.InferenceSession(exported.path(graph), providers=["CPUExecutionProvider"])
    assert [i.name for i in session.get_inputs()] == [t.name for t in contract(exported.spec)[graph].inputs]


def test_versions(exported: Exported, graph: str) -> None:
    model = exported.models[graph]
    assert {entry.domain: entry.version for entry in model.opset_import} == {"": 24, "star": 1}
    assert model.producer_name == "star-export"
    assert model.graph.name == graph


def declared(values: Any) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(
            value.name,
            np.dtype(helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)).name,
            tuple(dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim),
        )
        for value in values
    )


def test_borders_are_the_contract(exported: Exported, graph: str) -> None:
    found, expected = exported.models[graph].graph, contract(exported.spec)[graph]
    assert declared(found.input) == tuple(replace(tensor, role=None) for tensor in expected.inputs)
    assert declared(found.output) == expected.outputs


def test_star_calls(exported: Exported, graph: str) -> None:
    calls, functions = exported.slots(graph), exported.models[graph].functions
    if not exported.spec.schedule or graph == DECODE:
        assert not calls
        assert not functions
        return
    assert [(call.op_type, len(call.input), len(call.output)) for call in calls] == [("TopKGather", 3, 2)]
    attributes = {a.name: helper.get_attribute_value(a) for a in calls[0].attribute}
    assert attributes == {"plugin_namespace": b"star"}
    assert [(f.domain, f.name, list(f.attribute)) for f in functions] == [
        ("star", "TopKGather", ["plugin_namespace"])
    ]
    assert {node.op_type for node in functions[0].node} <= BODY_OPS
    assert all(node.domain == "" for node in functions[0].node)


def test_node_kinds(exported: Exported, graph: str) -> None:
    nodes = exported.models[graph].graph.node
    assert {node.op_type for node in nodes} <= ALLOWED_OPS[graph]
    assert {node.domain for node in nodes} <= {"", "star"}
    assert not any(a.type in (a.GRAPH, a.GRAPHS) for node in nodes for a in node.attribute)


@pytest.mark.parametrize("exported", ["mha float16"], indirect=True)
def test_all_node_kinds_are_in_use(exported: Exported, graph: str) -> None:
    assert {node.op_type for node in exported.models[graph].graph.node} == ALLOWED_OPS[graph]


def test_node_counts_follow_the_layers(exported: Exported) -> None:
    layers = exported.spec.model.text.num_layers
    for graph in (PREFILL, DECODE):
        kinds = Counter(node.op_type for node in exported.models[graph].graph.node)
        assert kinds["Attention"] == layers
        assert kinds["TensorScatter"] == kinds["RotaryEmbedding"] == 2 * layers
        assert kinds["RMSNormalization"] == 2 * layers + 1


def test_every_value_has_a_name_of_its_own(exported: Exported, graph: str) -> None:
    proto = exported.models[graph].graph
    given = [*(value.name for value in (*proto.input, *proto.initializer))]
    given += [name for node in proto.node for name in node.output]
    assert len(set(given)) == len(given)
    assert all(given)


def test_decode_begins_with_the_later_lengths(exported: Exported) -> None:
    first, *others = exported.models[DECODE].graph.node
    begins = (first.op_type, first.input, first.output) == (
        "Add",
        ["late_lengths", "zero"],
        ["late_write_indices"],
    )
    assert begins == bool(exported.spec.schedule)
    assert not any("late_lengths" in node.input for node in others)


def test_weights_are_external(exported: Exported, graph: str) -> None:
    parameters = fake_module(graph, exported.spec).state_dict()
    external = {tensor.name: tuple(tensor.dims) for tensor, _ in exported.external(graph)}
    assert external == {name: tuple(value.shape) for name, value in parameters.items()}


def test_external_data_is_the_safetensors_tensor(exported: Exported, graph: str) -> None:
    folder = exported.path(graph).parent
    stored = load_file(folder / WEIGHTS[graph])
    content = (folder / WEIGHTS[graph]).read_bytes()
    for tensor, where in exported.external(graph):
        offset, length = int(where["offset"]), int(where["length"])
        expected = stored[tensor.name]
        assert where["location"] == WEIGHTS[graph]
        assert offset + length <= len(content)
        assert content[offset : offset + length] == expected.tobytes()
        assert helper.tensor_dtype_to_np_dtype(tensor.data_type) == expected.dtype == exported.spec.dtype


def test_prefill_and_decode_share_their_bytes(exported: Exported) -> None:
    prefill, decode = ({t.name: where for t, where in exported.external(g)} for g in (PREFILL, DECODE))
    assert prefill == decode
    assert set(prefill) == set(load_file(exported.folder / "graphs" / "decoder.safetensors"))
    assert sorted(p.name for p in exported.path(VISION).parent.iterdir()) == [
        "decode.onnx", "decoder.safetensors", "prefill.onnx", "vision.onnx", "vision.safetensors",
    ]  # fmt: skip


def test_no_weight_is_inline(exported: Exported, graph: str) -> None:
    constants = [
        helper.get_attribute_value(a)
        for node in exported.models[graph].graph.node
        for a in node.attribute
        if a.type == a.TENSOR
    ]
    inline = [t for t in exported.models[graph].graph.initializer if t.data_location != TensorProto.EXTERNAL]
    arrays = [numpy_helper.to_array(tensor) for tensor in (*inline, *constants)]
    large = [array for array in arrays if array.nbytes > 1000]
    assert not [array.tolist() for array in large]


def test_files_name_no_folder_of_this_machine(exported: Exported, graph: str) -> None:
    content = exported.path(graph).read_bytes()
    traces = [b"/tmp/", b"/home/", b"/root/", b"site-packages", b"Traceback", b'.py"']
    places = (exported.folder, exported.checkpoint, Path.cwd(), Path(torch.__file__).parent)
    for trace in (*traces, *(str(place).encode() for place in places)):
        assert trace not in content


def hugging_face(model: LlavaForConditionalGeneration) -> dict[str, torch.Tensor]:
    """The checkpoint's tensors by the names of a bundle."""
    names = ("vision_tower", "multi_modal_projector", "language_model")
    parts = {name: getattr(model.model, name) for name in names} | {"lm_head": model.lm_head}
    tensors = {}
    for prefix, part in parts.items():
        for name, module in part.named_modules():
            for leaf, value in module.named_parameters(recurse=False):
                key = ".".join(filter(None, (prefix, name, leaf)))
                tensors[key] = value
    return tensors


def test_weights_are_the_checkpoints(exported: Exported) -> None:
    model = LlavaForConditionalGeneration.from_pretrained(exported.checkpoint, dtype=torch.float32)
    expected = hugging_face(model)
    assert exported.spec.model.text.tie_word_embeddings == ("gqa" in exported.checkpoint.name)
    for name in ("vision", "decoder"):
        stored = load_file(exported.folder / "graphs" / f"{name}.safetensors")
        assert len(stored) > 30
        for key in stored.keys() - {"rotary.cos", "rotary.sin"}:
            wanted = expected[key].detach().numpy().astype(exported.spec.dtype)
            np.testing.assert_array_equal(stored[key], wanted, err_msg=key)


def zeros(exported: Exported, graph: str, sizes: dict[str, int]) -> dict[str, np.ndarray]:
    sizes = dict(zip(capacity_symbols(exported.spec), exported.spec.capacities, strict=True)) | sizes
    return {
        t.name: np.zeros([sizes[d] if isinstance(d, str) else d for d in t.shape], t.dtype)
        for t in contract(exported.spec)[graph].inputs
    }


@pytest.mark.parametrize("exported", PRUNED, indirect=True)
def test_one_prefill_graph_serves_every_budget_and_length(exported: Exported) -> None:
    session = ort.InferenceSession(exported.path(PREFILL))
    random = np.random.default_rng(0)
    for visual, text, keep in [(518, 20, 288), (518, 7, 1), (518, 7, 64), (40, 90, 29), (3, 2, 2)]:
        feeds = zeros(exported, PREFILL, {"S": visual + text, "V": visual, "Q": text - 1, "N2": keep})
        feeds["image_positions"][0] = np.arange(1, visual + 1)
        feeds["query_positions"][0] = np.arange(visual + 1, visual + text)
        feeds["image_features"][:] = random.standard_normal(feeds["image_features"].shape)
        kept, logits = session.run(["kept_positions", "logits"], feeds)
        assert kept.shape == (1, keep + text)
        assert (np.diff(kept[0]) > 0).all()
        assert {0, *range(visual + 1, visual + text)} < set(kept[0].tolist())
        assert np.isfinite(logits).all()


@pytest.mark.parametrize("exported", PRUNED, indirect=True)
def test_one_vision_graph_serves_every_budget(exported: Exported) -> None:
    session = ort.InferenceSession(exported.path(VISION))
    pixels = np.random.default_rng(0).standard_normal(contract(exported.spec)[VISION].inputs[0].shape)
    kept: set[int] = set()
    for budget in (1, 64, 518, 576):
        feeds = {
            "pixel_values": pixels.astype(exported.spec.dtype),
            "stage1_slots": np.zeros(budget, np.int64),
        }
        features, indices = session.run(["image_features", "image_indices"], feeds)
        assert features.shape == (1, budget, exported.spec.model.text.hidden_size)
        assert len(indices[0]) == budget
        assert kept < set(indices[0].tolist())  # the best k are among the best k + n
        kept = set(indices[0].tolist())
    assert kept == set(range(576))


@pytest.mark.parametrize("exported", ["mha", "gqa", "mha unpruned"], indirect=True)
def test_decoding_together_is_decoding_alone(exported: Exported) -> None:
    session = ort.InferenceSession(exported.path(DECODE))
    random = np.random.default_rng(0)
    feeds = zeros(exported, DECODE, {"B": 3, "C": 1})
    for name, value in feeds.items():
        if name.startswith("past"):
            value[:] = random.standard_normal(value.shape)
    feeds["input_ids"][:, 0] = 5, 300, 5
    feeds["position_ids"][:, 0] = feeds["early_lengths"][:] = 530, 17, 600
    if "late_lengths" in feeds:
        feeds["late_lengths"][:] = 70, 17, 211
    together = session.run(None, feeds)
    for row in range(3):
        alone = session.run(None, {name: value[row : row + 1] for name, value in feeds.items()})
        for a, b in zip(together, alone, strict=True):
            np.testing.assert_allclose(a[row : row + 1], b, rtol=1e-4, atol=1e-5)
    logits = together[0]
    assert np.abs(logits[0] - logits[2]).max() > 0.1  # the same token, other caches


def test_decoding_writes_one_slot_and_reads_no_free_one(exported: Exported) -> None:
    session = ort.InferenceSession(exported.path(DECODE))
    names = [t.name for t in contract(exported.spec)[DECODE].outputs]
    feeds = zeros(exported, DECODE, {"B": 1, "C": 1})
    lengths = {"position_ids": 9, "early_lengths": 9, "late_lengths": 4}
    for name, length in lengths.items():
        if name in feeds:
            feeds[name][:] = length
    first = dict(zip(names, session.run(None, feeds), strict=True))
    for layer in range(exported.spec.model.text.num_layers):
        for kind in ("key", "value"):
            written = np.flatnonzero(first[f"present.{layer}.{kind}"].any(axis=(0, 1, 3)))
            assert written.tolist() == [(9, 4)[exported.spec.group(layer)]]
            feeds[f"past_key_values.{layer}.{kind}"][:, :, written[0] + 1 :] = 7  # free slots
    again = dict(zip(names, session.run(None, feeds), strict=True))
    np.testing.assert_array_equal(again["logits"], first["logits"])


@pytest.mark.parametrize(
    ("dtype", "layers"), [("float16", WIDE), pytest.param("bfloat16", (), marks=pytest.mark.slow)]
)
def test_what_is_computed_in_float32(
    bundle: Callable[..., Path], graph: str, dtype: str, layers: tuple[str, ...]
) -> None:
    folder = bundle("mha", dtype=dtype, fp32_layers=layers)
    model = onnx.load(folder / "graphs" / f"{graph}.onnx", load_external_data=False)
    spec = open_bundle(folder).spec
    assert declared(model.graph.output) == contract(spec)[graph].outputs
    infos = (*model.graph.value_info, *model.graph.input, *model.graph.output)
    types = {info.name: info.type.tensor_type.elem_type for info in infos}
    types |= {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    narrow = TensorProto.DataType.Value(dtype.upper())
    for node in model.graph.node:
        kept = any(f"{layer}." in node.name or f"{layer}/" in node.name for layer in layers)
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type in ("RMSNormalization", "LayerNormalization"):
            assert attributes["stash_type"] == TensorProto.FLOAT
        elif node.op_type in ("Softmax", "ReduceMean"):  # maps and scores
            assert types[node.output[0]] == TensorProto.FLOAT
        elif node.op_type in ("Attention", "RotaryEmbedding", "TensorScatter"):
            assert {types[name] for name in node.input[:2]} == {narrow}
            assert "softmax_precision" not in attributes  # TensorRT refuses it
        elif node.op_type == "MatMul" and node.input[1] in weight_names(model):
            assert types[node.output[0]] == (TensorProto.FLOAT if kept else narrow), node.name


def weight_names(model: onnx.ModelProto) -> set[str]:
    return {tensor.name for tensor in model.graph.initializer}


def test_nodes_are_named_after_their_module(exported: Exported) -> None:
    for graph in GRAPHS:
        for node in exported.models[graph].graph.node:
            module, _, _ = node.name.rpartition("/")
            weights = [name for name in node.input if name.endswith(".weight")]
            if module == "lm_head" and exported.spec.shared_head:
                assert weights == [f"{EMBEDDING}.weight"] or not weights
                continue
            assert all(name.startswith(f"{module}.") for name in weights)
            assert module or not weights
