"""This machine: sensors, energy, probes of its speed."""
