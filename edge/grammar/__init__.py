"""Answers that keep to rules: JSON Schema, GBNF, regular expressions and Lark, all through llguidance."""
