"""From data and a base to a PEFT adapter. Imports only `edge`."""
