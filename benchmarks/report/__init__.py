"""Reports of scores as text, JSON and HTML."""
