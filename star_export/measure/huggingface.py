"""The Hugging Face side of a benchmark."""

import time
from pathlib import Path

import torch
from transformers import DynamicCache

from star_export.measure.workload import Sample, Side, Workload, make_sample
from star_export.preprocessing import load_image
from star_export.preprocessing.processor import read_processor
from star_export.specs import DType
from star_export.validation.expected import picture_inputs, processor_inputs
from star_export.validation.loading import load_model
from star_export.validation.reference import cache_argument


class HuggingFaceSide(Side):
    """The checkpoint in transformers, with its KV cache.

    Args:
        folder: The checkpoint.
        attention: ``sdpa`` or ``eager``.
        threads: CPU threads; all cores when None.
        device: ``cpu`` or ``cuda``.
        dtype: Of its weights and its arithmetic.
    """

    def __init__(
        self, folder: Path, *, attention: str, threads: int | None, device: str, dtype: DType
    ) -> None:
        if threads:
            torch.set_num_threads(threads)
        self.device, self.dtype = device, getattr(torch, dtype)
        self.model = load_model(folder, dtype=self.dtype, attention=attention).to(device)
        self.processor = read_processor(folder)

    @torch.inference_mode()
    def measure(self, workload: Workload) -> Sample:
        """Answer once and take the time."""
        start = time.perf_counter()
        inputs = processor_inputs(self.processor, [load_image(workload.picture)], workload.text)
        inputs = inputs.to(self.device, self.dtype)  # ids stay integers
        ready = self._now()
        features = self.model.get_image_features(**picture_inputs(inputs)).pooler_output
        seen = self._now()
        embeds = self.model.get_input_embeddings()(inputs["input_ids"])
        places = inputs["input_ids"] == self.model.config.image_token_id
        embeds[places] = torch.cat(list(features))
        cache = {cache_argument(self.model): DynamicCache(config=self.model.config.text_config)}
        output = self.model(inputs_embeds=embeds, use_cache=True, logits_to_keep=1, **cache)
        token = output.logits[:, -1].argmax(-1, keepdim=True)
        first = self._now()
        for _ in range(workload.new_tokens):
            output = self.model(input_ids=token, use_cache=True, **cache)
            token = output.logits[:, -1].argmax(-1, keepdim=True)
        self._now()
        return make_sample(start, ready, seen, first, workload.new_tokens)

    def close(self) -> None:
        """Let go of the model."""
        self.model = None

    def _now(self) -> float:
        """Seconds, when all work that was given to the device is done."""
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()
