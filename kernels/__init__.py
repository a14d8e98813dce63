"""Array operations: arrays in, arrays out. No strings, no files, no configuration, no gpumatch imports.

One op a file; each has a NumPy reference in `reference.py` that tests and benchmarks share.
"""
