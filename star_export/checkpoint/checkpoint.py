"""A LLaVA checkpoint on disk: where it is, what it is, and its tensors.

Reading the config needs the ``export`` extra (transformers fills in the
defaults that published configs leave out); tensors are read from safetensors
one at a time.
"""

import difflib
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from star_export.checkpoint.aliases import ALIASES
from star_export.checkpoint.folder import find_shards, read_json, read_llava_config
from star_export.checkpoint.hub import download, is_hub_id, split_revision
from star_export.errors import CheckpointError, SettingsError, option
from star_export.files import sha256
from star_export.progress import NoProgress, Progress
from star_export.specs import ModelSpec, TextSpec, VisionSpec

if TYPE_CHECKING:
    import torch

log = logging.getLogger("star_export.checkpoint.checkpoint")

VISION_ACTIVATIONS = ("quick_gelu", "gelu", "gelu_pytorch_tanh", "silu")
ROPE_TYPES = ("default", "linear", "llama3", "yarn")
_WEB = re.compile(r"https?://(?:[^/]*/([\w.-]+/[\w.-]+))?")

#: What ``generate`` does to a greedy answer and no bundle does, each with the value that changes nothing.
_GREEDY_SETTINGS: dict[str, object] = {
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "bad_words_ids": None,
    "force_words_ids": None,
    "sequence_bias": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "exponential_decay_length_penalty": None,
    "min_length": 0,
    "min_new_tokens": 0,
    "num_beams": 1,
    "guidance_scale": 1.0,
    "penalty_alpha": None,
    "stop_strings": None,
    "watermarking_config": None,
}

#: Checkpoint prefixes of all transformers versions, and the one name used here.
_PREFIXES = (
    (re.compile(r"^(model\.)?vision_tower\.(vision_model\.)?"), "vision_tower."),
    (re.compile(r"^(model\.)?multi_modal_projector\."), "multi_modal_projector."),
    (re.compile(r"^language_model\.lm_head\."), "lm_head."),
    (re.compile(r"^(model\.language_model|language_model\.model)\."), "language_model."),
)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder whose config and tensor headers were read and checked.

    Attributes:
        folder: Local folder in Hugging Face layout.
        source: What the user asked for: an absolute path or a hub id.
        revision: Commit of the hub snapshot, None for a local folder.
        model: Shape of the model.
        tensors: Canonical tensor name -> (file, name in the file, shape).
    """

    folder: Path
    source: str
    revision: str | None
    model: ModelSpec
    tensors: Mapping[str, tuple[Path, str, tuple[int, ...]]]

    def tensor(self, name: str) -> "torch.Tensor":
        """Read one tensor; the file is mapped only while this call runs.

        Raises:
            CheckpointError: If no tensor has that name.
        """
        from safetensors import safe_open

        if name not in self.tensors:
            raise CheckpointError(f"{self.folder} has no tensor {name}; is the checkpoint complete?")
        path, stored_name, _ = self.tensors[name]
        with safe_open(path, framework="pt") as file:
            tensor: torch.Tensor = file.get_tensor(stored_name)
            return tensor

    def file_hashes(self) -> dict[str, str]:
        """SHA-256 of the config and of every tensor file, by file name."""
        files = {path for path, _, _ in self.tensors.values()} | {self.folder / "config.json"}
        return {path.name: sha256(path) for path in sorted(files)}


def open_checkpoint(
    model: str, *, revision: str | None = None, progress: Progress | None = None
) -> Checkpoint:
    """Find, read and check a checkpoint.

    Args:
        model: An alias (``llava-1.5-7b``), a hub id, or a local folder; after the first two ``@REVISION``.
        revision: Branch, tag or commit on the hub; its default branch when neither is given.
        progress: Told about a download; nobody by default.

    Raises:
        CheckpointError: If it is missing, damaged or of an unsupported architecture.
        SettingsError: If a revision is given for a folder, or twice.
        PlatformError: If it would have to be downloaded and cannot be.
    """
    folder, source, commit = _locate(model, revision, progress or NoProgress())
    config = _read_config(folder)
    return Checkpoint(
        folder=folder,
        source=source,
        revision=commit,
        model=_model_spec(config, folder),
        tensors=_index_tensors(folder),
    )


def _locate(model: str, revision: str | None, progress: Progress) -> tuple[Path, str, str | None]:
    """Folder, source and commit; an alias comes before a folder of its name, which ``./NAME`` means."""
    if web := _WEB.match(model):
        raise CheckpointError(
            f"{model} is a web address; give the model's id: {option('model', web[1] or 'ORGANISATION/NAME')}"
        )
    name, tagged = split_revision(model)
    path = Path(model).expanduser()
    if name not in ALIASES and path.is_dir():
        if revision is not None:
            raise SettingsError(f"{option('revision')} belongs to a model of the hub; {model} is a folder")
        return path, str(path.resolve()), None
    if name not in ALIASES and path.exists():
        kind = "a GGUF file, made for llama.cpp" if path.suffix == ".gguf" else "a file"
        raise CheckpointError(f"{model} is {kind}; give the checkpoint's folder")
    if revision is not None and tagged is not None:
        raise SettingsError(f"give a revision once: {option('revision', revision)}, or {model}")
    hub_id = ALIASES[name].hub_id if name in ALIASES else name
    if not is_hub_id(hub_id):
        near = difflib.get_close_matches(name, ALIASES, n=1)
        hint = f"did you mean {near[0]}?" if near else f"aliases are {', '.join(ALIASES)}"
        raise CheckpointError(f"no folder, alias or hub id is called {model}; {hint}")
    folder = download(hub_id, revision or tagged, progress)
    return folder, hub_id, folder.name


def _read_config(folder: Path) -> Any:
    from transformers import AutoConfig

    read_llava_config(folder)
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise CheckpointError(f"transformers cannot read {folder / 'config.json'}: {error}") from error


def _require(what: str, found: object, supported: tuple[object, ...]) -> None:
    if found not in supported:
        names = ", ".join(map(str, supported))
        raise CheckpointError(f"{what} {found!r} is not supported; supported: {names}")


def _model_spec(config: Any, folder: Path) -> ModelSpec:
    if getattr(config, "quantization_config", None):
        raise CheckpointError("quantized checkpoints are not supported; give the original float weights")
    _require("vision tower", config.vision_config.model_type, ("clip_vision_model",))
    _require("decoder", config.text_config.model_type, ("llama",))
    _require("vision_feature_select_strategy", config.vision_feature_select_strategy, ("default",))
    _require("projector activation", config.projector_hidden_act, VISION_ACTIVATIONS)
    text = _text_spec(config.text_config, tied=bool(config.tie_word_embeddings))
    if not 0 <= config.image_token_index < text.vocab_size:
        raise CheckpointError(
            f"image_token_index {config.image_token_index} is outside the vocabulary of {text.vocab_size}"
        )
    return ModelSpec(
        vision=_vision_spec(config.vision_config, config.vision_feature_layer),
        text=text,
        projector_act=config.projector_hidden_act,
        projector_bias=config.multimodal_projector_bias,
        image_token_id=config.image_token_index,
        eos_token_ids=_eos_token_ids(config, folder),
    )


def _vision_spec(config: Any, feature_layer: object) -> VisionSpec:
    _require("vision activation", config.hidden_act, VISION_ACTIVATIONS)
    if not isinstance(feature_layer, int):
        raise CheckpointError(f"vision_feature_layer {feature_layer!r} is not supported; expected one layer")
    # hidden_states[0] is the embedding, hidden_states[i] the output of layer i-1.
    count = config.num_hidden_layers
    layers = feature_layer if feature_layer >= 0 else count + 1 + feature_layer
    if not 1 <= layers <= count:
        raise CheckpointError(f"vision_feature_layer {feature_layer} is outside the {count}-layer tower")
    if config.image_size % config.patch_size:
        raise CheckpointError(
            f"image_size {config.image_size} is no multiple of patch_size {config.patch_size}"
        )
    return VisionSpec(
        image_size=config.image_size,
        patch_size=config.patch_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_layers=layers,
        num_heads=config.num_attention_heads,
        hidden_act=config.hidden_act,
        layer_norm_eps=config.layer_norm_eps,
    )


def _text_spec(config: Any, *, tied: bool) -> TextSpec:
    rope = dict(config.rope_parameters)
    _require("decoder activation", config.hidden_act, ("silu",))
    _require("rope_type", rope.get("rope_type", "default"), ROPE_TYPES)
    return TextSpec(
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_layers=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        head_dim=config.head_dim or config.hidden_size // config.num_attention_heads,
        vocab_size=config.vocab_size,
        hidden_act=config.hidden_act,
        rms_norm_eps=config.rms_norm_eps,
        attention_bias=config.attention_bias,
        mlp_bias=config.mlp_bias,
        tie_word_embeddings=tied,
        max_position_embeddings=config.max_position_embeddings,
        rope_parameters=rope,
    )


def _eos_token_ids(config: Any, folder: Path) -> tuple[int, ...]:
    """As ``generate`` reads them: generation_config.json first, then the decoder's config."""
    ids = _generation_config(folder).get("eos_token_id", config.text_config.eos_token_id)
    if ids is None:
        return ()
    return tuple(ids) if isinstance(ids, list) else (ids,)


def _generation_config(folder: Path) -> dict[str, Any]:
    path = folder / "generation_config.json"
    return read_json(path) if path.is_file() else {}


def warn_of_unused_settings(folder: Path) -> None:
    """Name what a checkpoint's ``generation_config.json`` asks for and no bundle does."""
    unused = [
        f"{name}={value}"
        for name, value in _generation_config(folder).items()
        if name in _GREEDY_SETTINGS and value not in (None, _GREEDY_SETTINGS[name], [])
    ]
    if unused:
        log.warning(
            "generation_config.json sets %s: not used by star-export, so answers differ from generate()'s",
            ", ".join(unused),
        )


def canonical_name(name: str) -> str:
    """The tensor name used here for any spelling of any transformers version."""
    for pattern, prefix in _PREFIXES:
        if pattern.match(name):
            return pattern.sub(prefix, name, count=1)
    return name


def canonical_module(name: str) -> str:
    """The module name used here for any spelling of any transformers version."""
    return canonical_name(f"{name}.").removesuffix(".")


def _index_tensors(folder: Path) -> dict[str, tuple[Path, str, tuple[int, ...]]]:
    tensors: dict[str, tuple[Path, str, tuple[int, ...]]] = {}
    for path in find_shards(folder):
        for stored_name, shape in _read_header(path):
            name = canonical_name(stored_name)
            if name in tensors:
                files = f"{tensors[name][0].name} and {path.name}"
                raise CheckpointError(f"{folder} has {name} twice, in {files}; get the files again")
            tensors[name] = path, stored_name, shape
    return tensors


def _read_header(path: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            for name in file.keys():  # noqa: SIM118 (a file, not a dict)
                stored = file.get_slice(name)
                _require(f"dtype of {name}", stored.get_dtype(), ("F32", "F16", "BF16"))
                yield name, tuple(stored.get_shape())
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} is truncated or not safetensors ({error}); get the file again"
        ) from error
