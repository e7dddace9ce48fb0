"""Prompts that the router is measured on."""
