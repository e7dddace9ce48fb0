"""The session on llama.cpp: shelf of adapters, rows, speculation."""
