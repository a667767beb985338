"""Optimization, checkpoints, resume, logs and export."""
