"""The engine thread: it owns a session, takes requests from any thread, and shares one CPU fairly between them."""
