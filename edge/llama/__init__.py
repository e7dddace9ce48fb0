"""Owners of llama.cpp's objects: model, context, tokenizer, sampler, grammar, and what its kernels do."""
