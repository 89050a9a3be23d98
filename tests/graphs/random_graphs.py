"""Graphs of any spec with random weights, where a checkpoint and a whole bundle would say nothing more."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from star_export.graphs.export import export_graph, fake_module
from star_export.graphs.weights import StoredTensor, write_weights
from star_export.specs import (
    ExportSpec,
    ImageLimits,
    ModelSpec,
    Stage,
    default_prune_layer,
    resolve_images,
    resolve_star,
)


def small(model: ModelSpec, *, side: int = 4, head: int = 16, layers: int = 2) -> ModelSpec:
    """The same with tiles of ``side x side`` patches of 2 px, heads of ``head`` in the tower, few layers."""
    vision, text = model.vision, model.text
    tiling = model.tiling and replace(
        model.tiling,
        pinpoints=tuple(
            (height // vision.image_size * 2 * side, width // vision.image_size * 2 * side)
            for height, width in model.tiling.pinpoints
        ),
    )
    return replace(
        model,
        tiling=tiling,
        image_token_id=5,
        vision=replace(
            vision, image_size=2 * side, patch_size=2, hidden_size=2 * head, num_heads=2,
            intermediate_size=48, num_layers=2, feature_layers=(2,),
        ),
        text=replace(
            text, hidden_size=64, intermediate_size=96, num_layers=layers, num_heads=4, num_kv_heads=2,
            head_dim=16, vocab_size=128,
        ),
    )  # fmt: skip


def small_spec(
    model: ModelSpec, *, prune: bool = True, keep: int = 6, images: ImageLimits | None = None,
    dtype: str = "float32", append_tokens: int = 8,
) -> ExportSpec:  # fmt: skip
    """What a build would make of ``model``."""
    images = images or resolve_images(model, room=30000)
    layer = default_prune_layer(model.text.num_layers)
    schedule = resolve_star(model, images, keep=keep, prune_layer=layer) if prune else ()
    return ExportSpec(
        model=model, schedule=schedule, images=images, max_text_tokens=24, max_new_tokens=16,
        append_tokens=append_tokens, dtype=dtype,  # type: ignore[arg-type]
    )  # fmt: skip


def staged_spec(model: ModelSpec, *stages: tuple[int, str, int], share: float | None = None) -> ExportSpec:
    """Stages ``(after_layer, score, tokens)``, the first with a share of each picture if one is given."""
    schedule = tuple(
        Stage(
            after_layer=layer, score=score, tokens=tokens, max_tokens=tokens,
            share=None if layer else share,
        )
        for layer, score, tokens in stages
    )  # fmt: skip
    return replace(small_spec(model, prune=False, dtype="float16"), schedule=schedule)


def export_random(spec: ExportSpec, graph: str, folder: Path) -> Path:
    """One graph beside its weights; returns the ``.onnx`` file."""
    random = torch.Generator().manual_seed(0)

    def values(shape: torch.Size) -> torch.Tensor:
        return torch.randn(shape, generator=random) * shape[0] ** -0.5 * 2

    parameters = fake_module(graph, spec).state_dict()
    tensors = [
        StoredTensor(
            name=name, shape=tuple(value.shape), dtype=spec.weight_dtype(name),
            load=partial(values, value.shape),
        )
        for name, value in parameters.items()
    ]  # fmt: skip
    weights = write_weights(folder / f"{graph}.safetensors", tensors, lambda _bytes: None)
    path = folder / f"{graph}.onnx"
    export_graph(graph, spec, weights, path)
    return path
