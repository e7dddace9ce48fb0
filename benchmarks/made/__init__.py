"""Random bases and adapters of a given shape, for proofs."""
