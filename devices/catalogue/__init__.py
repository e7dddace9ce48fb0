"""What boards and models are: facts from the TOML files."""
