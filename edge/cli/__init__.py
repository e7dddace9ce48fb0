"""The commands: parse, call, show. They hold no logic that a Python user would miss."""
