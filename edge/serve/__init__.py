"""The server's process: sockets and their limits, keys, who may do what, metrics, start and end."""
