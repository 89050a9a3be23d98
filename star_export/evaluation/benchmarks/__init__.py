"""Published benchmarks, read from the files that their authors publish; see docs/benchmarks.md."""
