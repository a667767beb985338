"""Data modules, and the steps from a file to a batch."""
