"""Owners of llama.cpp's objects: model, context, tokenizer, sampler, and what its kernels do."""
