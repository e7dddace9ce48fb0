"""Writers and readers of tensor files: GGUF, safetensors, encodings."""
