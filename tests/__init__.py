"""The tests; a regular package, so that a ``tests`` that some dependency installed cannot answer in its place."""
