"""How fast a bundle is, beside the unpruned one and Hugging Face."""
