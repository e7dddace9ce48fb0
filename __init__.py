"""Small language models with task adapters, on your own device. See `slm_edge.edge` and docs/python-api.md."""
