"""How fast the extensions are: `python -m benchmarks.bench_extensions --help`."""
