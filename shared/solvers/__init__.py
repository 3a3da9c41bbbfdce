"""Exact maximisers of linear functions over finite sets, for whole batches."""
