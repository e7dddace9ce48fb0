"""A tokenizer becomes GGUF's: vocabulary, merges, pre-tokenizer, special tokens."""
