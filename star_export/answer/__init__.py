"""From a request to its answer: the three steps, sampling, streaming text."""
