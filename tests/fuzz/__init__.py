"""Damaged input of every kind: whatever comes, it is answered or refused with one clear error."""

from pathlib import Path

MODEL = Path(__file__).parents[2] / "models/mini"
