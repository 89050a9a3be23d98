"""How the mini model is trained."""
