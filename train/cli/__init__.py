"""The commands under `slm-edge train`."""
