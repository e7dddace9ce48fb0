"""Proof that exported files compute what PEFT computes."""
