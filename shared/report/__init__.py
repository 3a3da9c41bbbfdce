"""Reports and slides from measured records."""
