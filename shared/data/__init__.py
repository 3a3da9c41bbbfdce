"""Data sets: catalogue, fetching, checks, loaders and batches."""
