"""Our engines beside the programs that a user would take instead: `python -m slm_edge.benchmarks.peers base.gguf`."""
