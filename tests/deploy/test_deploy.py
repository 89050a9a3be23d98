"""What is in ``deploy/``, as far as it can be held without a cluster."""

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes_validate import validate

from star_export.serving.stats import METRICS

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
MANIFESTS = {
    "kubernetes": ("serve.yaml", "autoscaler.yaml", "router.yaml"),
    "kubernetes-triton": ("triton.yaml", "serve.yaml"),
}
IN_FOLDER = {
    folder: [item for name in names for item in yaml.safe_load_all((DEPLOY / folder / name).read_text())]
    for folder, names in MANIFESTS.items()
}
ITEMS = [(folder, item) for folder, items in IN_FOLDER.items() for item in items]
FOLDERS = pytest.mark.parametrize("folder", MANIFESTS)


def _containers(folder: str) -> dict[str, dict[str, Any]]:
    return {
        container["name"]: container
        for item in IN_FOLDER[folder]
        if item["kind"] == "Deployment"
        for container in item["spec"]["template"]["spec"]["containers"]
    }


def _serve_help() -> str:
    command = [sys.executable, "-m", "star_export.cli", "serve", "--help"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize(
    "item", [item for _, item in ITEMS], ids=[f"{f}-{i['kind']}-{i['metadata']['name']}" for f, i in ITEMS]
)
def test_manifests_are_kubernetes(item: dict[str, Any]) -> None:
    validate(item, "1.33", strict=True)


@FOLDERS
def test_every_manifest_is_applied(folder: str) -> None:
    kustomization = yaml.safe_load((DEPLOY / folder / "kustomization.yaml").read_text())
    assert sorted(kustomization["resources"]) == sorted(MANIFESTS[folder])
    images = {container["image"] for container in _containers(folder).values()}
    assert {image["name"] for image in kustomization["images"]} <= images


@FOLDERS
def test_parts_find_each_other(folder: str) -> None:
    """Services lead to pods of the folder, by ports that these have; what is asked for is there."""
    pods = {
        tuple(template["metadata"]["labels"].items()): template["spec"]["containers"]
        for item in IN_FOLDER[folder]
        if (template := item["spec"].get("template") if "spec" in item else None)
    }
    services = {
        item["metadata"]["name"]: item["spec"] for item in IN_FOLDER[folder] if item["kind"] == "Service"
    }
    for spec in services.values():
        ports = {port["name"] for c in pods[tuple(spec["selector"].items())] for port in c["ports"]}
        assert {port["targetPort"] for port in spec["ports"]} <= ports
    for name, port in re.findall(r"grpc://([a-z-]+):(\d+)", str(_containers(folder)["serve"]["args"])):
        assert int(port) in {found["port"] for found in services[name]["ports"]}


@pytest.mark.parametrize("file", sorted(DEPLOY.glob("*.Dockerfile")), ids=lambda file: file.name)
def test_dockerfiles(file: Path) -> None:
    run = subprocess.run([Path(sys.executable).with_name("hadolint"), file], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout


def test_options_exist() -> None:
    known = set(re.findall(r"--[a-z-]+", _serve_help()))
    entry = json.loads(re.search(r"^ENTRYPOINT (.*)$", (DEPLOY / "serve.Dockerfile").read_text(), re.M)[1])
    arguments = [argument for folder in MANIFESTS for argument in _containers(folder)["serve"]["args"]]
    given = {argument for argument in (*entry, *arguments) if argument.startswith("--")}
    assert given
    assert given <= known


@FOLDERS
def test_the_key_comes_from_the_variable_that_serve_reads(folder: str) -> None:
    (variable,) = _containers(folder)["serve"]["env"]
    assert variable["name"] in _serve_help()


def test_metrics_exist() -> None:
    dashboard = (DEPLOY / "grafana.json").read_text()
    named = {n for text in (dashboard, str(IN_FOLDER)) for n in re.findall(r"\bstar_[a-z_]+", text)}
    assert json.loads(dashboard)["panels"]
    assert "star_requests_waiting" in named
    assert named <= {f"star_{name}" for name in (*METRICS, "requests_finished_total")}


def test_pods_have_time_to_finish() -> None:
    for _, item in ITEMS:
        if item["kind"] == "Deployment":
            assert item["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] >= 120 + 10


def test_the_slim_image_answers(tmp_path: Path, bundle: Callable[..., Path]) -> None:
    """Its steps in a fresh environment."""
    text = (DEPLOY / "serve.Dockerfile").read_text()
    assert re.findall(r"pip \w+", text) == ["pip wheel", "pip install"]
    extras = re.findall(r"^ARG EXTRAS=(.*)$", text, re.M)[0]
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv/bin/python"
    wheels = tmp_path / "wheels"
    pip = [python, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", wheels, ROOT], check=True, cwd=tmp_path)
    (wheel,) = wheels.iterdir()
    subprocess.run([*pip, "install", f"{wheel}[{extras}]"], check=True, cwd=tmp_path)
    assert subprocess.run([python, "-c", "import torch"], capture_output=True).returncode, "a slim one"
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    command = [tmp_path / "venv/bin/star-export", "serve", bundle("mini"), "--port", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path, env=clean) as server:
        try:
            assert server.stdout is not None
            url = json.loads(server.stdout.readline())["address"]
            with urllib.request.urlopen(f"{url}/health") as response:
                assert response.status == 200
        finally:
            server.send_signal(signal.SIGTERM)
        assert server.wait(30) == 0
