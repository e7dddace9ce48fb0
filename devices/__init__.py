"""What is known and measured about devices. Imports only `edge`."""
