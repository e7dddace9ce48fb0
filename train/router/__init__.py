"""The router's training prompts, and how it is trained."""
