"""Export LLaVA models with STAR visual-token pruning, and run them.

Example:
    >>> import star_export
    >>> pipeline = star_export.load("bundle")
    >>> pipeline.generate("picture.png", "What is this?").result().text
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from star_export.pipeline import Generation, Pipeline, Result, load
    from star_export.sampling import Sampling

__version__ = "0.1.0"
__all__ = ["Generation", "Pipeline", "Result", "Sampling", "__version__", "load"]


def __getattr__(name: str) -> Any:
    """Import on first use, so that ``star-export --help`` stays quick."""
    if name == "Sampling":
        from star_export.sampling import Sampling

        return Sampling
    if name in __all__:
        from star_export import pipeline

        return getattr(pipeline, name)
    raise AttributeError(f"module 'star_export' has no attribute {name!r}")
