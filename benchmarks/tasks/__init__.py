"""The test sets: prompts, and how an answer is judged."""
