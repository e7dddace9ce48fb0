"""`python -m slm_edge.edge` is `slm-edge`."""

from .cli import main

main()
