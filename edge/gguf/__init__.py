"""What a GGUF file says: reader, base and adapter checks, fingerprint, families, chat template. No C library."""
