"""``generation_config.json``: the tokens that end an answer, and what no bundle does."""

import logging
from pathlib import Path
from typing import Any

from star_export.checkpoint.folder import read_json

log = logging.getLogger("star_export.checkpoint.generation_config")

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


def eos_token_ids(folder: Path, text_config: Any) -> tuple[int, ...]:
    """Tokens that end an answer: the file's, and without any there the decoder's.

    ``generate`` takes the decoder's when there is no file, and never ends when a file leaves them out.

    Args:
        folder: Checkpoint folder.
        text_config: The decoder's config, with the defaults of its class.
    """
    ids = _read(folder).get("eos_token_id", text_config.eos_token_id)
    if ids is None:
        return ()
    return tuple(ids) if isinstance(ids, list) else (ids,)


def warn_of_unused_settings(folder: Path) -> None:
    """Name what a checkpoint's ``generation_config.json`` asks for and no bundle does."""
    unused = [
        f"{name}={value}"
        for name, value in _read(folder).items()
        if name in _GREEDY_SETTINGS and value not in (None, _GREEDY_SETTINGS[name], [])
    ]
    if unused:
        log.warning(
            "generation_config.json sets %s: not used by star-export, so answers differ from generate()'s",
            ", ".join(unused),
        )


def _read(folder: Path) -> dict[str, Any]:
    path = folder / "generation_config.json"
    return read_json(path) if path.is_file() else {}
