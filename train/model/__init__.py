"""Weights and adapters in torch: bases, blocks, LoRA, NF4, attention."""
