"""Answers of a model as training data."""
