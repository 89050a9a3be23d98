"""Export LLaVA models with STAR visual-token pruning, and run them.

Example:
    >>> import star_export
    >>> pipeline = star_export.load("bundle")
    >>> pipeline.generate("picture.png", "What is this?").result().text
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from star_export.answer.generation import Generation, Result
    from star_export.answer.pipeline import Pipeline, load
    from star_export.answer.sampling import Sampling
    from star_export.engines import Runtime

__version__ = "0.1.0"
__all__ = ["Generation", "Pipeline", "Result", "Runtime", "Sampling", "__version__", "load"]

_HOME = {
    "Generation": "answer.generation",
    "Pipeline": "answer.pipeline",
    "Result": "answer.generation",
    "Runtime": "engines",
    "Sampling": "answer.sampling",
    "load": "answer.pipeline",
}


def __getattr__(name: str) -> Any:
    """Import on first use, so that ``star-export --help`` stays quick."""
    if name not in _HOME:
        raise AttributeError(f"module 'star_export' has no attribute {name!r}")
    return getattr(importlib.import_module(f"star_export.{_HOME[name]}"), name)
