"""How cost grows with the model, the context, the adapters and the clients: `python -m slm_edge.benchmarks.scaling`."""
