"""Perplexity, divergence, and the likelihood of reference answers."""
