"""The benchmark harness: a model, tasks read from disk, policies and honest controls; one JSON line per answer.

Only the command line imports it: whoever prunes does not need it.
"""
