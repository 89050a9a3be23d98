"""Processors of small checkpoints: what prepares pictures, and chat templates of the published forms."""

from pathlib import Path
from typing import Any

from transformers import CLIPImageProcessor, LlavaProcessor, PreTrainedTokenizerFast

from star_export.files import write_json

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | upper }}: "
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }} {% endif %}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def _turn(before_text: str, after_text: str, *, after_image: str = "\n") -> str:
    """The pictures of a turn, before its texts."""
    parts = "{% for part in message['content'] | selectattr('type', 'equalto', "
    images = f"{parts}'image') %}}{{{{ '<image>{after_image}' }}}}{{% endfor %}}"
    return (
        f"{images}{parts}'text') %}}{{{{ '{before_text}' + part['text'] + '{after_text}' }}}}{{% endfor %}}"
    )


#: LLaVA-NeXT with Vicuna: ``USER: <image>\nquestion ASSISTANT:``.
VICUNA = (
    "{% for message in messages %}"
    "{% if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}{% endif %}"
    f"{_turn('', ' ')}{{% endfor %}}{{% if add_generation_prompt %}}ASSISTANT:{{% endif %}}"
)
#: LLaVA-NeXT with Mistral: ``[INST] <image>\nquestion [/INST] answer</s> ``.
MISTRAL = (
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    f"[INST] {_turn('', '')} [/INST]"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'][0]['text'] + '</s> ' }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
#: LLaVA-NeXT with Llama-3: every turn in a header of its own.
LLAMA3 = (
    "{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
    f"{_turn('', '')}<|eot_id|>{{% endfor %}}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
#: LLaVA-Interleave and OneVision: ``<|im_start|>user <image>\nquestion<|im_end|>``.
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + ' ' }}"
    + _turn("\n", "", after_image="")
    + "<|im_end|>{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

_CLIP_MEAN, _CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
_NAMES = {"llava": "Llava", "llava_next": "LlavaNext", "llava_onevision": "LlavaOnevision"}


def write_processor(
    folder: Path, config: Any, tokenizer: PreTrainedTokenizerFast, chat_template: str | None
) -> None:
    """Write tokenizer and processor of a model, in the files that its family was published with.

    Args:
        folder: Checkpoint folder.
        config: The model's config.
        tokenizer: Its tokenizer.
        chat_template: Its chat template; None for none.
    """
    is_clip = config.vision_config.model_type == "clip_vision_model"
    if config.model_type == "llava" and is_clip:
        _llava_processor(config, tokenizer, chat_template).save_pretrained(folder)
        return
    tokenizer.save_pretrained(folder)
    if chat_template is not None:
        (folder / "chat_template.jinja").write_text(chat_template)
    write_json(folder / "preprocessor_config.json", _image_processor(config, is_clip))
    write_json(folder / "processor_config.json", _counts(config, is_clip))


def _llava_processor(
    config: Any, tokenizer: PreTrainedTokenizerFast, chat_template: str | None
) -> LlavaProcessor:
    side = config.vision_config.image_size
    images = CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=config.vision_config.patch_size,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        num_additional_image_tokens=1,
        chat_template=chat_template,
    )


def _image_processor(config: Any, is_clip: bool) -> dict[str, Any]:
    """``preprocessor_config.json``."""
    side = {"height": config.vision_config.image_size, "width": config.vision_config.image_size}
    family = "Siglip" if config.model_type == "llava" else _NAMES[config.model_type]
    common = {
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": _CLIP_MEAN if is_clip else [0.5, 0.5, 0.5],
        "image_processor_type": f"{family}ImageProcessor",
        "image_std": _CLIP_STD if is_clip else [0.5, 0.5, 0.5],
        "resample": 3,
        "rescale_factor": 1 / 255,
    }
    if config.model_type != "llava":
        common |= {"do_pad": True, "image_grid_pinpoints": config.image_grid_pinpoints}
    if config.model_type != "llava_next":
        return common | {"size": side}
    return common | {"crop_size": side, "do_center_crop": True, "size": {"shortest_edge": side["height"]}}


def _counts(config: Any, is_clip: bool) -> dict[str, Any]:
    """``processor_config.json``: what a processor counts a picture's tokens by."""
    common = {
        "image_token": "<image>",
        "processor_class": f"{_NAMES[config.model_type]}Processor",
        "vision_feature_select_strategy": config.vision_feature_select_strategy,
    }
    vision = config.vision_config
    if config.model_type == "llava_onevision":
        patches = (vision.image_size // vision.patch_size) ** 2
        others = {"num_image_tokens": patches, "video_token": "<video>"}
        return common | others | {"vision_aspect_ratio": config.vision_aspect_ratio}
    return common | {"num_additional_image_tokens": int(is_clip), "patch_size": vision.patch_size}
