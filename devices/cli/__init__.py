"""The commands `slm-edge devices` and `slm-edge profile`."""
