"""Proof that a bundle matches PyTorch, and what it costs. Needs the ``export`` extra."""
