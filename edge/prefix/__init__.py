"""Which beginnings of prompts are kept, under which key, and where."""
