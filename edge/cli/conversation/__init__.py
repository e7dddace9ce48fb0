"""A conversation at a terminal or through a pipe."""
