"""Random checkpoints, for tests and benchmarks."""
