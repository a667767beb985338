"""Offline tools that bring datasets into place."""
