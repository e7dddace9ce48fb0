"""Scores and speed of what ships, through the runtime that users run. Imports `edge` and `devices`."""
