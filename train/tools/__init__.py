"""Helpers around training: comparing runs, memory, the starter's adapters."""
