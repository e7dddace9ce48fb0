"""Rows of public data sets as messages, and the number an answer ends with; train and benchmarks share them."""
