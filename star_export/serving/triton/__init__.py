"""Triton Inference Server: the model that its Python backend runs, and what starts it."""
