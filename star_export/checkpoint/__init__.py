"""A checkpoint in Hugging Face layout: where it is, what it is, its tensors."""
