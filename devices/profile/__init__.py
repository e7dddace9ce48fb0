"""A measured profile of a pack on this machine, as text and HTML."""
