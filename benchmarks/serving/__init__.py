"""What a running `slm-edge serve` promises, measured over real sockets: see docs/serve.md for the commands."""
