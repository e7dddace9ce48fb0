"""Forecasts of latency and memory, their constants, and how the constants are fitted."""
