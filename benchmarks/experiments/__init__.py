"""Questions that were answered once, by command."""
