"""From each older format of ``manifest.json`` to the next.

An upgrade sees JSON values that nobody has checked yet: what is missing or of another type it leaves
as it is, for the reader of the present format to name.
"""

from collections.abc import Callable
from typing import Any

Json = dict[str, Any]

FORMAT_VERSION = 3


def _to_2(manifest: Json) -> Json:
    """Format 2 numbers the contract, of which format 1 knew one version."""
    return {**manifest, "format_version": 2, "contract_version": 1}


def _to_3(manifest: Json) -> Json:
    """Format 3 says in data what readers of format 2 had to compute."""
    spec = manifest.get("spec")
    if isinstance(spec, dict):
        spec = {**spec, "model": _model_to_3(spec.get("model"))}
    return {**manifest, "format_version": 3, "spec": spec}


def _model_to_3(model: Any) -> Any:
    return model


#: The upgrade of each older format.
UPGRADES: dict[int, Callable[[Json], Json]] = {1: _to_2, 2: _to_3}
