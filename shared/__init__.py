"""The common layers of the papers: a small typed library."""
