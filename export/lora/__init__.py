"""A PEFT adapter becomes a GGUF adapter: plan, scaling, what is refused."""
