"""The session on llama.cpp: shelf of adapters, lane, rows, speculation."""
