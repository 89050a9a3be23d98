"""Ranges of what a manifest may hold."""

from typing import Annotated

from msgspec import Meta

# Upper bounds are far above any model, and below what exhausts memory.
Count = Annotated[int, Meta(ge=1, le=1 << 31)]
Layers = Annotated[int, Meta(ge=1, le=1024)]
Side = Annotated[int, Meta(ge=1, le=1 << 14)]
TokenId = Annotated[int, Meta(ge=0, le=1 << 31)]
Epsilon = Annotated[float, Meta(gt=0, lt=1)]
