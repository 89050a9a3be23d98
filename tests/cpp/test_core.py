"""The C++ runtime's bundles, sampling, sessions and steps give what Python's give, bit for bit."""

import copy
import json
import random
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from star_export.answer.pipeline import Pipeline, load
from star_export.answer.request import Request
from star_export.answer.sampling import Sampler, Sampling
from star_export.arrays import to_device_dtype
from star_export.bundle import open_bundle
from star_export.errors import BundleError, PlatformError, SettingsError
from star_export.preprocessing import PreparedImage
from star_export.preprocessing.packing import Packing
from tests.cpp.talker import Talker

LIBRARY = next(Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*"))

THREE_GROUPS: dict[str, Any] = {"schedule": "30@0,20@1,10@2", "stage1": "peaks", "stage2": "last"}
BUNDLES: dict[str, tuple[str, dict[str, Any]]] = {
    "float32": ("mha", {}),
    "trained": ("mini", {"max_images": 3}),
    "grouped": ("gqa", {"dtype": "float16"}),
    "unpruned": ("mha", {"prune": False}),
    "three groups": ("vicuna", THREE_GROUPS),
    "int8": ("mha", {"quantize": "int8"}),
    "int4": ("mha", {"quantize": "int4"}),
    "int4 rows": ("mha", {"quantize": "int4", "quantize_embedding": True}),
    "tiles": ("next", {"max_images": 3}),
    "scaled tiles": ("onevision", {"max_images": 3}),
}


@pytest.fixture(scope="module")
def talker() -> Iterator[Talker]:
    with Talker("talk_core") as talker:
        yield talker


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    made = np.random.default_rng(3)
    sizes = [(336, 336), (400, 300), (120, 500), (64, 64)]
    return [
        Image.fromarray(made.integers(0, 256, (4, 5, 3), dtype=np.uint8)).resize(size, resample=3)
        for size in sizes
    ]


def test_sampling(talker: Talker, tmp_path: Path) -> None:
    chance = np.random.default_rng(1)
    vocabulary, settings, rows = 1543, [], []
    for trial in range(600):
        count = int(chance.integers(1, 5))
        seed = int(chance.integers(0, 1 << 63)) if trial % 3 else trial
        temperature = float(chance.choice([0.001, 0.3, 0.7, 1.0, 1.7, 30.0]))
        top_p = float(chance.choice([1.0, 0.95, 0.5, 0.01, 0.999999]))
        settings.append({"seed": seed, "temperature": temperature, "top_p": top_p, "rows": count})
        scale = chance.choice([0.01, 1, 10])
        rows.append((chance.standard_normal((count, vocabulary)) * scale).astype(np.float32))
        if trial % 5 == 0:  # ties and impossible tokens
            rows[-1] = np.round(rows[-1])
            rows[-1][:, ::7] = -np.inf
    np.concatenate(rows).tofile(tmp_path / "logits")
    expected = []
    for how, some in zip(settings, rows, strict=True):
        sampler = Sampler(Sampling(**{k: v for k, v in how.items() if k != "rows"}))
        expected.append([sampler.draw(row) for row in some])
    found = talker.ask("sample", logits=str(tmp_path / "logits"), vocabulary=vocabulary, settings=settings)
    assert found["tokens"] == expected


def test_greedy(talker: Talker, tmp_path: Path) -> None:
    chance = np.random.default_rng(2)
    rows = np.round(chance.standard_normal((500, 64)) * 2).astype(np.float32)
    odd = [np.nan, np.inf, -np.inf, -0.0]
    for row in rows[:300]:
        row[chance.integers(0, 64, 3)] = chance.choice(odd, 3)
    rows[300:310] = -np.inf
    best = rows.argmax(1)
    expected = [int(i) if np.isfinite(row[i]) else -1 for i, row in zip(best, rows, strict=True)]
    rows.tofile(tmp_path / "logits")
    found = talker.ask(
        "sample", logits=str(tmp_path / "logits"), vocabulary=64, settings=[{"rows": len(rows)}]
    )
    assert found["tokens"] == [expected]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_rounding(talker: Talker, tmp_path: Path, dtype: Any) -> None:
    bits = np.random.default_rng(4).integers(0, 1 << 32, 300_000, dtype=np.uint32)
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        between = (halves.view(np.uint32)[:, None] + np.array([0, 1, 0xFFF, 0x1000, 0x1001, 0x3000])).ravel()
    values = np.concatenate([bits, between.astype(np.uint32)]).view(np.float32)
    values = values[~np.isnan(values)]
    values.tofile(tmp_path / "values")
    talker.ask("round", values=str(tmp_path / "values"), dtype=dtype, to=str(tmp_path / "rounded"))
    with np.errstate(over="ignore"):
        expected = to_device_dtype(values, dtype)
    assert (tmp_path / "rounded").read_bytes() == expected.tobytes()


@pytest.mark.parametrize("kind", ["float32", "three groups", "unpruned", "tiles", "scaled tiles"])
def test_budgets(talker: Talker, bundle: Any, kind: str) -> None:
    preset, options = BUNDLES[kind]
    folder = bundle(preset, **options)
    spec, chance = open_bundle(folder).spec, random.Random(5)
    assert talker.ask("open", folder=str(folder))["capacities"] == list(spec.capacities)
    pipeline = load(folder, threads=1)
    questions, expected = [], []
    for _ in range(1000):
        images = []
        for _ in range(chance.randint(0, 3)):
            tokens = chance.randint(2, spec.largest_image)
            images.append({"tokens": tokens, "newlines": chance.randint(0, tokens - 1)})
        stages = len(spec.schedule)
        keep = chance.choice(
            [None, chance.randint(-1, 300), [chance.randint(1, 60) for _ in range(chance.randint(1, 3))]]
        )
        if isinstance(keep, list) and len(keep) == stages and chance.random() < 0.8:
            keep.sort(reverse=True)
        text, visual = chance.randint(1, 100), chance.randint(1, spec.max_visual_tokens)
        questions.append({"images": images, "keep": keep, "text": text, "visual": visual})
        expected.append(_expected_budgets(pipeline, images, keep, text, visual))
    assert talker.ask("budgets", questions=questions)["answers"] == expected


def _expected_budgets(pipeline: Pipeline, images: Any, keep: Any, text: int, visual: int) -> dict[str, Any]:
    given = tuple(keep) if isinstance(keep, list) else keep
    prepared = [
        PreparedImage(
            pixels=np.zeros(0, np.float32), packing=Packing(tokens=i["tokens"], newlines=i["newlines"])
        )
        for i in images
    ]
    try:
        budget = pipeline.budget(given, prepared)
    except SettingsError as error:
        return {"error": str(error)}
    return {
        "keep": list(budget) if isinstance(budget, tuple) else budget,
        "entering": pipeline.entering(prepared, budget),
        "budgets": list(pipeline.spec.budgets(budget, entering=visual)),
        "lengths": list(pipeline.spec.lengths(text, visual, budget)),
    }


@pytest.mark.parametrize("kind", BUNDLES)
def test_answers(talker: Talker, bundle: Any, tmp_path: Path, pictures: list[Image.Image], kind: str) -> None:
    preset, options = BUNDLES[kind]
    folder = bundle(preset, **options)
    pipeline = load(folder, threads=1)
    talker.ask("open", folder=str(folder), verify=True)
    talker.ask("load", library=str(LIBRARY), threads=1)
    for request in _requests(pipeline, pictures):
        expected, logits = _by_python(pipeline, request)
        found = talker.ask("run", **_as_question(pipeline, request, tmp_path))
        assert {key: found[key] for key in expected} == expected
        assert (tmp_path / "logits").read_bytes() == logits.tobytes()


def _requests(pipeline: Pipeline, pictures: Sequence[Image.Image]) -> Iterator[Request]:
    """One picture with several budgets and settings, then as many as the bundle takes."""
    keeps: list[Any] = [None]
    if pipeline.spec.schedule:
        last = pipeline.spec.schedule[-1].tokens
        keeps += [max(1, last // 2), 3, tuple(max(1, s.tokens // 2) for s in pipeline.spec.schedule)]
    for index, keep in enumerate(keeps):
        for picture in pictures[: 2 if index else 4]:
            sampling = Sampling(temperature=0.8, top_p=0.9, seed=index) if index == 1 else Sampling()
            yield pipeline.request(picture, "What is in it?", keep=keep, max_new_tokens=6, sampling=sampling)
    for count in range(2, pipeline.spec.images.max_images + 1):
        yield pipeline.request(pictures[:count], "Which is larger?", max_new_tokens=6)


def _by_python(pipeline: Pipeline, request: Request) -> tuple[dict[str, Any], Any]:
    steps, sampler, tokens, logits = pipeline.steps, Sampler(request.sampling), list[int](), []
    visions = steps.encode_images(request.images, request.keep)
    state = steps.prefill(request.tokens, *visions, keep=request.keep, new_tokens=request.max_new_tokens)
    while True:
        logits.append(state.logits)
        tokens.append(state.next_token(sampler))
        if len(tokens) == request.max_new_tokens:
            break
        steps.decode(state, tokens[-1])
    indices = [vision.num_tokens for vision in visions]
    if len(visions) == 1:
        indices = visions[0].indices.tolist()
    stages = [positions.tolist() for positions in state.stage_positions]
    return {
        "tokens": tokens,
        "indices": indices,
        "stages": stages,
        "lengths": state.lengths.tolist(),
    }, np.concatenate(logits)


def _as_question(pipeline: Pipeline, request: Request, folder: Path) -> dict[str, Any]:
    images = []
    for number, image in enumerate(request.images):
        path = folder / f"pixels{number}"
        np.ascontiguousarray(image.pixels).tofile(path)
        about = {"pixels": str(path), "tiles": len(image.pixels), "tokens": image.packing.tokens}
        if pipeline.spec.model.tiling is not None:
            packed = pipeline.steps._packed(image.packing)
            about |= {name: values.ravel().tolist() for name, values in packed.items()}
        images.append({**about, "newlines": image.packing.newlines})
    sampling, tokens = request.sampling, request.tokens
    chosen = {"temperature": sampling.temperature, "top_p": sampling.top_p}
    return {
        "images": images,
        "input_ids": tokens.input_ids[0].tolist(),
        "image_positions": tokens.image_positions[0].tolist(),
        "query_positions": tokens.query_positions[0].tolist(),
        "keep": request.keep,
        "new_tokens": request.max_new_tokens,
        "sampling": chosen if sampling.seed is None else {**chosen, "seed": sampling.seed},
        "logits": str(folder / "logits"),
    }


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from _places(inner, (*path, key))


_NOTHING = object()


def _damaged(manifest: Any, path: tuple[Any, ...], new: Any) -> Any:
    manifest = copy.deepcopy(manifest)
    parent = manifest
    for key in path[:-1]:
        parent = parent[key]
    if new is _NOTHING:
        del parent[path[-1]]
    else:
        parent[path[-1]] = new
    return manifest


def _refusal(talker: Talker, folder: Path, **options: Any) -> str | None:
    """What C++ says of a bundle, if it refuses it."""
    try:
        talker.ask("open", folder=str(folder), **options)
    except BundleError as error:
        return str(error)
    return None


@pytest.mark.parametrize("kind", ["float32", "three groups", "scaled tiles", "int4"])
def test_damaged_manifests(talker: Talker, bundle: Any, tmp_path: Path, kind: str) -> None:
    """Whatever one value becomes, both runtimes take it or both refuse it."""
    preset, options = BUNDLES[kind]
    folder = Path(shutil.copytree(bundle(preset, **options), tmp_path / "bundle"))
    manifest, chance = json.loads((folder / "manifest.json").read_text()), random.Random(6)
    news = [_NOTHING, None, "64", 64.5, -1, 0, 1, 2, 1 << 31, 1 << 70, True, [], {}, [1], {"x": 1}, "é" * 300]
    places = [place for place in _places(manifest) if place[0] not in ("engines", "versions", "source")]
    differing = []
    for place in chance.sample(places, min(len(places), 250)):
        new = chance.choice(news)
        values = _damaged(manifest, place, new)
        (folder / "manifest.json").write_text(json.dumps(values))
        found, expected = _refusal(talker, folder), None
        try:
            open_bundle(folder)
        except BundleError as error:
            expected = str(error)
        if (expected is None) != (found is None):
            differing.append((place, new, expected, found))
    assert not differing


def test_cut_files(talker: Talker, bundle: Any, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bundle("mha"), tmp_path / "bundle"))
    whole = (folder / "manifest.json").read_bytes()
    for length in range(0, len(whole) - 2, len(whole) // 150):
        (folder / "manifest.json").write_bytes(whole[:length])
        assert _refusal(talker, folder)
    (folder / "manifest.json").write_bytes(whole)
    talker.ask("open", folder=str(folder), verify=True)
    for file in json.loads(whole)["files"]:
        path = folder / file["path"]
        content = path.read_bytes()
        for damaged in (content[:-1], content[:-1] + bytes([content[-1] ^ 1])):
            path.write_bytes(damaged)
            message = _refusal(talker, folder, verify=True)
            with pytest.raises(BundleError) as expected:
                open_bundle(folder, verify=True)
            assert message == str(expected.value)
        path.write_bytes(content)


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../out", "a/../../out", "..\\out", "C:\\x", "C:x", "link/x", "graphs"]
)
def test_paths_stay_inside(talker: Talker, bundle: Any, tmp_path: Path, path: str) -> None:
    folder = Path(shutil.copytree(bundle("mha"), tmp_path / "bundle"))
    (folder / "link").symlink_to(tmp_path)
    (tmp_path / "x").write_bytes(b"")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"].append({"path": path, "bytes": 0, "sha256": "0" * 64})
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError) as expected:
        open_bundle(folder)
    assert _refusal(talker, folder) == str(expected.value)


def test_libraries(bundle: Any, tmp_path: Path) -> None:
    with Talker("talk_core") as talker:  # one that has loaded none: a process has one library
        talker.ask("open", folder=str(bundle("mha")))
        with pytest.raises(PlatformError, match="STAR_ONNXRUNTIME"):
            talker.ask("load", library=str(tmp_path / "libonnxruntime.so"))
