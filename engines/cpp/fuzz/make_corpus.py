"""Write the fuzzers' seeds, a few small inputs of every kind: ``python engines/cpp/fuzz/make_corpus.py``."""

import json
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from star_export.contract import cache_groups, contract, size_ranges
from star_export.manifest import CONTRACT_VERSION, FORMAT_VERSION, TIE_RULE
from star_export.specs.export import ExportSpec
from star_export.specs.images import ImageLimits
from star_export.specs.model import ModelSpec, TextSpec, VisionSpec
from star_export.specs.pruning import Stage
from star_export.specs.quantization import Quantization
from star_export.specs.tiling import Tiling

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[2] / "tests/cpp"))

import pictures  # noqa: E402

FILES = (
    "tokenizer.json",
    "preprocessor.json",
    *(f"graphs/{name}.onnx" for name in ("vision", "prefill", "decode")),
)


def some_pictures(most: int = 24, largest: int = 1500) -> list[bytes]:
    """Of each kind of file that the tests have, every so many-th that is small."""
    random = np.random.default_rng(0)
    kinds = [list(pictures.jpegs(random)), list(pictures.pngs(random))]
    kinds.append([pictures.png(random, (8, 8), 8, 2, data) for data in pictures.odd_chunks()])
    kinds.append(
        [pictures.animated(random), pictures.with_text(random), pictures.interlaced(random, (9, 7), 4, 3)]
    )
    small = [[data for data in kind if len(data) <= largest] for kind in kinds]
    return [data for kind in small for data in kind[:: max(1, len(kind) * len(kinds) // most)]]


_VISION = VisionSpec(
    model_type="clip_vision_model",
    image_size=28,
    patch_size=14,
    hidden_size=8,
    intermediate_size=8,
    num_layers=1,
    num_heads=1,
    hidden_act="gelu",
    layer_norm_eps=1e-5,
    feature_layers=(1,),
    has_cls=True,
    feature_select="default",
)
_BIAS = dict.fromkeys(("q_bias", "k_bias", "v_bias", "o_bias", "mlp_bias", "tie_word_embeddings"), False)
_TEXT = TextSpec(
    hidden_size=8,
    intermediate_size=8,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=4,
    vocab_size=16,
    hidden_act="silu",
    rms_norm_eps=1e-5,
    **_BIAS,
    max_position_embeddings=256,
    rope_parameters={},
    sliding_window=None,
)


def manifests() -> list[bytes]:
    """A model whose pictures are whole, and one that cuts them, unpruned and pruned."""
    stages = (
        Stage(after_layer=0, score="cls", tokens=3, max_tokens=3, share=None, mass=None),
        Stage(after_layer=1, score="last", tokens=2, max_tokens=2, share=None, mass=0.9),
    )
    found = []
    for schedule, tiling, bits in (
        ((), None, None),
        (stages, None, None),
        ((), Tiling(pinpoints=((28, 56), (56, 56)), max_grid=2, several_whole=True), None),
        (stages, None, Quantization(type="int4", block=32, embedding=True, layers=("lm_head",))),
    ):
        model = ModelSpec(
            model_type="llava",
            vision=_VISION,
            text=_TEXT,
            projector_act="gelu",
            projector_bias=True,
            image_token_id=3,
            eos_token_ids=(2,),
            tiling=tiling,
        )
        limits = ImageLimits(max_images=1, max_tiles=5 if tiling else 1, max_image_tokens=40 if tiling else 4)
        spec = ExportSpec(
            model=model,
            schedule=schedule,
            images=limits,
            max_text_tokens=16,
            max_new_tokens=8,
            append_tokens=4,
            dtype="float32",
            quantization=bits,
        )
        found.append(_written(_manifest(spec)))
    whole = {"dtype": "F32", "shape": [2, 4], "data_offsets": [0, 32]}
    halves = {"dtype": "BF16", "shape": [0, 8], "data_offsets": [32, 32]}
    return [
        *found,
        _written({"w": whole, "__metadata__": {}}),
        _written({"w": whole, "v": {"dtype": "I64", "shape": [], "data_offsets": [8, 16]}, "h": halves}),
    ]


def _manifest(spec: ExportSpec) -> dict[str, Any]:
    return {
        "format_version": FORMAT_VERSION,
        "contract_version": CONTRACT_VERSION,
        "source": {"model": "m", "revision": None},
        "versions": {},
        "spec": spec.to_dict(),
        "tie_rule": TIE_RULE,
        "contract": {graph: io.to_dict() for graph, io in contract(spec).items()},
        "groups": [asdict(group) for group in cache_groups(spec)],
        "sizes": {name: size.to_dict() for name, size in size_ranges(spec).items()},
        "engines": {},
        "files": [{"path": path, "bytes": 0, "sha256": "0" * 64} for path in FILES],
    }


def _written(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


_REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
_SPLIT = {
    "type": "Split",
    "pattern": {"Regex": r"(?i:'s|'t)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|\s+(?!\S)|\s+"},
}
#: Every part of a tokenizer that is read.
_PARTS: list[dict[str, Any]] = [
    {
        "normalizer": {
            "type": "Sequence",
            "normalizers": [{"type": "Prepend", "prepend": "\u2581"}, _REPLACE],
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": "<s>", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
            ],
            "pair": [],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
    },
    {
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {**_SPLIT, "behavior": "Isolated", "invert": False},
                {
                    "type": "ByteLevel",
                    "add_prefix_space": False,
                    "trim_offsets": True,
                    "use_regex": False,
                },
            ],
        },
        "decoder": {"type": "ByteLevel"},
    },
    {
        "pre_tokenizer": {
            "type": "Metaspace",
            "replacement": "\u2581",
            "prepend_scheme": "first",
            "split": True,
        },
        "decoder": {
            "type": "Metaspace",
            "replacement": "\u2581",
            "prepend_scheme": "always",
            "split": False,
        },
    },
    {
        "normalizer": {
            "type": "Sequence",
            "normalizers": [{"type": kind} for kind in ("NFD", "NFKC", "NFKD", "Lowercase")]
            + [{"type": "Strip", "strip_left": True, "strip_right": True}],
        },
        "pre_tokenizer": {"type": "Digits", "individual_digits": True},
    },
]
_PARTS += [
    {"pre_tokenizer": {**_SPLIT, "behavior": behavior, "invert": True}}
    for behavior in ("Removed", "MergedWithPrevious", "MergedWithNext", "Contiguous")
]


def tokenizers() -> list[bytes]:
    """Every part that is supported, each with a text behind it."""
    texts = ("a ab\u00e9  \u0130 e\u0301", "ab's 123\n \u4e2d", "<s>a \u00e9", " A\ufb01 \U0001f600 12 ")
    return [
        _written(_tokenizer(part)) + b"\0" + texts[i % len(texts)].encode() for i, part in enumerate(_PARTS)
    ]


def _tokenizer(parts: dict[str, Any]) -> dict[str, Any]:
    vocab = [
        "<unk>",
        "<s>",
        "</s>",
        "a",
        "b",
        "ab",
        "\u2581",
        "\u2581a",
        "<0xC3>",
        "<0xA9>",
        "\u0120",
        "\u00c3",
        "\u00a9",
    ]
    model = {
        "type": "BPE",
        "unk_token": "<unk>",
        "fuse_unk": True,
        "byte_fallback": True,
        "vocab": {token: i for i, token in enumerate(vocab)},
        "merges": ["a b", ["\u2581", "a"]],
    }
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    added = [
        {"id": 1, "content": "<s>", **flags, "special": True, "rstrip": True},
        {"id": 13, "content": "x y", **flags, "single_word": True, "normalized": True},
    ]
    return {"version": "1.0", "added_tokens": added, "model": model, **parts}


def prompts() -> list[bytes]:
    """Parameters of pictures, resized by a side and to a size, and templates of both kinds."""
    image = {
        "shortest_edge": 28,
        "resize_to": None,
        "resample": 3,
        "crop": [28, 28],
        "rescale_factor": 1 / 255,
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
    }
    turn = {"prefix": "USER: ", "suffix": " ", "strip": "both"}
    forms = {
        "start": "",
        "user": turn,
        "user_with_image": {**turn, "prefix": "USER: <image>\n"},
        "assistant": turn,
        "generation_prompt": "ASSISTANT:",
        "image": "<image>\n",
    }
    prompt = {
        "image_token": "<image>",
        "image_token_id": 0,
        "chat_template": None,
        "special_tokens": {"bos_token": "a"},
    }
    several = {
        **forms,
        "image": "[<image>]",
        "user_with_image": {**turn, "prefix": "[<image>] ", "strip": "end"},
    }
    given = {
        **prompt,
        "content": "string",
        "given_template": True,
        "forms": {**several, "user": {"prefix": "", "suffix": ""}},
    }
    files = [
        {"image": image, "prompt": prompt},
        {"image": {**image, "crop": None, "resample": 0}, "prompt": given},
        {
            "image": {**image, "shortest_edge": None, "resize_to": [28, 28], "crop": None},
            "prompt": {
                **prompt,
                "chat_template": "{{ x }}",
                "content": "parts",
                "forms": forms,
                "end_tokens": ["a"],
            },
        },
    ]
    return [
        _written(file) + b"\0" + text.encode() for file in files for text in (" a aa ", "a <image> a", "")
    ]


def main() -> None:
    """Write them all anew."""
    seeds = {
        "picture": some_pictures(),
        "manifest": manifests(),
        "tokenizer": tokenizers(),
        "prompt": prompts(),
    }
    shutil.rmtree(HERE / "corpus", ignore_errors=True)
    for name, inputs in seeds.items():
        (HERE / "corpus" / name).mkdir(parents=True)
        for number, data in enumerate(inputs):
            (HERE / "corpus" / name / f"{number:02}").write_bytes(data)


if __name__ == "__main__":
    main()
