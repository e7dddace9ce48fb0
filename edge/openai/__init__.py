"""OpenAI's protocol over the engine: requests decoded and checked, answers shaped; no sockets, no keys."""
