"""Scores of captions and of retrieval."""
