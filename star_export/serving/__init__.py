"""Bundles behind Triton Inference Server: the model repository, the model in it, a client."""
