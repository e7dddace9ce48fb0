"""From a prompt to an adapter or none."""
