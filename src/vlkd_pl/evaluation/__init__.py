"""Evaluators, and the reports that they compute."""
