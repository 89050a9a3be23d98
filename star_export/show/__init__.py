"""Which tokens a bundle keeps, and by which scores."""
