"""Rows become training examples: sources, tasks' common part, contamination, replay."""
