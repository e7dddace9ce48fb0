"""Checkpoints and PEFT adapters to GGUF, quantisation, and the proof that both say the same. Imports edge only."""
