"""Answer a question about a picture with a bundle's files alone: what docs/bundle.md says is enough.

Nothing here is of star_export. ``python tests/second_reader.py BUNDLE PICTURE QUESTION`` prints greedy
tokens and their text as JSON.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
from PIL import Image
from tokenizers import Tokenizer


class Graph:
    """One graph; the outputs that the manifest calls aliases are written into the caches."""

    def __init__(self, folder, name, manifest, caches):
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        self.session = ort.InferenceSession(folder / f"graphs/{name}.onnx", options)
        self.io, self.sizes, self.caches = manifest["contract"][name], manifest["sizes"], caches

    def run(self, **feeds):
        for tensor in self.io["inputs"]:
            if tensor.get("role") == "length":  # a budget: nobody reads the values
                feeds[tensor["name"]] = np.zeros(self.sizes[tensor["shape"][0]]["default"], np.int64)
        binding = self.session.io_binding()
        for tensor in self.io["inputs"]:
            if tensor["name"] in feeds:
                value = np.ascontiguousarray(feeds[tensor["name"]], tensor["dtype"])
                binding.bind_cpu_input(tensor["name"], value)
        for tensor in self.io["outputs"]:
            if tensor["name"] in self.io["aliases"]:
                cache = self.caches[self.io["aliases"][tensor["name"]]]
                binding.bind_ortvalue_input(self.io["aliases"][tensor["name"]], cache)
                binding.bind_ortvalue_output(tensor["name"], cache)
            else:
                binding.bind_output(tensor["name"])
        self.session.run_with_iobinding(binding)
        names = [tensor["name"] for tensor in self.io["outputs"]]
        return dict(zip(names, binding.get_outputs(), strict=True))


def allocate(io, sizes):
    """Zeros for every input that is written in place, for one sequence."""
    shapes = {
        tensor["name"]: [
            size if isinstance(size, int) else sizes[size].get("default", 1) for size in tensor["shape"]
        ]
        for tensor in io["inputs"]
    }
    dtypes = {tensor["name"]: tensor["dtype"] for tensor in io["inputs"]}
    return {
        name: ort.OrtValue.ortvalue_from_numpy(np.zeros(shapes[name], dtypes[name]))
        for name in io["aliases"].values()
    }


def pixels(path, image):
    """Resize, crop in the middle, rescale, normalise: ``[1, 3, H, W]``."""
    picture = Image.open(path).convert("RGB")
    (width, height), edge = picture.size, image["shortest_edge"]
    size = (edge, int(edge * height / width)) if edge and width <= height else None
    size = size or ((int(edge * width / height), edge) if edge else tuple(reversed(image["resize_to"])))
    values = np.asarray(picture.resize(size, image["resample"]))
    if image["crop"]:
        top, left = ((have - want) // 2 for have, want in zip(values.shape[:2], image["crop"], strict=True))
        values = values[top : top + image["crop"][0], left : left + image["crop"][1]]
    scaled = (values.astype(np.float64) * image["rescale_factor"]).astype(np.float32)
    normal = (scaled - np.array(image["mean"], np.float32)) / np.array(image["std"], np.float32)
    return normal.transpose(2, 0, 1)[None]


def prompt_ids(question, prompt, tokenizer, visual):
    """Token ids with the image token ``visual`` times, and the place of the first of these."""
    form = prompt["forms"]["user_with_image"]
    said = {"none": question, "end": question.rstrip(), "both": question.strip()}[form["strip"]]
    text = prompt["forms"]["start"] + form["prefix"] + said + form["suffix"]
    text += prompt["forms"]["generation_prompt"]
    bos = prompt["special_tokens"].get("bos_token")
    ids = tokenizer.encode(text, add_special_tokens=bos is None or not text.startswith(bos)).ids
    at = ids.index(prompt["image_token_id"])
    return ids[:at] + [prompt["image_token_id"]] * visual + ids[at + 1 :], at


def answer(folder, picture, question):
    """Greedy token ids and their text."""
    manifest, parameters = (
        json.loads((folder / name).read_bytes()) for name in ("manifest.json", "preprocessor.json")
    )
    assert (manifest["format_version"], manifest["contract_version"]) == (5, 1), "another format"
    sizes, spec, prompt = manifest["sizes"], manifest["spec"], parameters["prompt"]
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    caches = allocate(manifest["contract"]["decode"], sizes)
    vision, prefill, decode = (Graph(folder, n, manifest, caches) for n in ("vision", "prefill", "decode"))

    visual = sizes["V"]["default"]
    ids, at = prompt_ids(question, prompt, tokenizer, visual)
    assert sizes["S"]["min"] <= len(ids) <= sizes["S"]["max"], "the prompt is too long"
    features = vision.run(pixel_values=pixels(picture, parameters["image"]))["image_features"].numpy()
    positions = np.arange(len(ids))[None]
    feeds = {"image_positions": positions[:, at : at + visual], "image_features": features}
    if "Q" in sizes:
        feeds["query_positions"] = positions[:, at + visual :]
    logits = prefill.run(input_ids=[ids], **feeds)["logits"].numpy()

    budgets = [visual, *(sizes[f"N{n}"]["default"] for n in range(2, len(manifest["groups"]) + 1))]
    lengths = [len(ids) - visual + budget for budget in budgets]
    ends = {*spec["model"]["eos_token_ids"], *map(tokenizer.token_to_id, prompt["end_tokens"])}
    tokens = [int(logits[0].argmax())]
    while len(tokens) < spec["max_new_tokens"] and tokens[-1] not in ends:
        feeds = {g["lengths"]: [n] for g, n in zip(manifest["groups"], lengths, strict=True)}
        logits = decode.run(input_ids=[tokens[-1:]], position_ids=[lengths[:1]], **feeds)["logits"].numpy()
        tokens.append(int(logits[0].argmax()))
        lengths = [length + 1 for length in lengths]
    return {"token_ids": tokens, "text": tokenizer.decode(tokens)}


if __name__ == "__main__":
    print(json.dumps(answer(Path(sys.argv[1]), *sys.argv[2:])))
