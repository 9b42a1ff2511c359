"""Measurements of vtprune; run as modules, ``python -m benchmarks.<name>``."""
