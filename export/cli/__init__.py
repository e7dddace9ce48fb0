"""The commands under `slm-edge export`."""
