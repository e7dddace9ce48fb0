"""The commands under `slm-edge bench`."""
