"""Other programs as they are, against a live server: clients, a proxy, llama-server's own tests."""
