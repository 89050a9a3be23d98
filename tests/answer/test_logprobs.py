"""How likely each token was, against Hugging Face's model and by the tokens' own bytes."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from star_export.answer.logprobs import rank, spell, token_bytes
from star_export.answer.pipeline import load
from star_export.answer.sampling import Sampling
from star_export.testing.tokenizers import TOKENIZERS


def test_they_are_those_of_hugging_faces_logits(
    bundle: Callable[..., Path], checkpoint: Callable[[str], Path], picture: Path
) -> None:
    import torch
    from transformers import LlavaForConditionalGeneration

    pipeline = load(bundle("gqa", prune=False), threads=1)
    sampling = Sampling(temperature=2.0, top_p=0.9, seed=1, top_logprobs=5)
    result = pipeline.generate(picture, "What?", sampling=sampling, max_new_tokens=6).result()
    prepared = pipeline.prepare(picture)
    prompt = pipeline.tokenize("What?", prepared).input_ids[0]
    model = LlavaForConditionalGeneration.from_pretrained(checkpoint("gqa")).eval()
    with torch.no_grad():
        ids = torch.tensor([[*prompt, *result.token_ids]])
        logits = model(input_ids=ids, pixel_values=torch.from_numpy(prepared[0].pixels)).logits[0]
    expected = logits[len(prompt) - 1 : -1].log_softmax(-1)
    assert result.logprobs is not None
    assert len(result.logprobs) == len(result.token_ids) == 6
    for row, token, found in zip(expected, result.token_ids, result.logprobs, strict=True):
        assert found.logprob == pytest.approx(row[token].item(), abs=2e-4)
        best = row.topk(5)
        assert [one.logprob for one in found.top_logprobs] == pytest.approx(best.values.tolist(), abs=2e-4)
        assert found.bytes == tuple(token_bytes(pipeline.tokenizer, token))
    assert any(found.logprob < found.top_logprobs[0].logprob for found in result.logprobs)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_bytes_of_tokens_make_the_text(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]().backend_tokenizer
    text = 'USER: What is in the picture?\n {"é": "日本 🐕", "b": [1,  2]}'
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    logits = np.zeros(tokenizer.get_vocab_size(), np.float32)
    said = [spell(rank(logits, token, 1), tokenizer) for token in ids]
    assert b"".join(bytes(one.bytes) for one in said).decode().removeprefix(" ") == text
    assert any(one.token == "\ufffd" for one in said)  # a part of a character
    assert token_bytes(tokenizer, tokenizer.token_to_id("<image>")) == b"<image>"
    assert token_bytes(tokenizer, tokenizer.get_vocab_size() + 7) == b""


def test_ties_go_to_the_lower_id_and_nothing_is_infinite() -> None:
    logits = np.array([1.0, 3.0, -np.inf, 3.0, 3.0, 0.0], np.float32)
    ranking = rank(logits, 2, 2)
    assert ranking.top == (1, 3)
    assert ranking.logprob == -9999.0
    assert np.exp(rank(logits, 0, 20).top_logprobs).sum() == pytest.approx(1)
    assert rank(logits, 0, 20).top == (1, 3, 4, 0, 5, 2)
    assert rank(logits, 1, 0).top == ()
