"""A checkpoint becomes a GGUF base: reading, quantising, merging."""
