"""Readers, datasets, samplers and collation: the steps from a file to a batch."""
