"""Bounds that are measured, each by one command."""
