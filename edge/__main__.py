"""`python -m slm_edge.edge` is `slm-edge`."""

from .cli.main import main

main()
