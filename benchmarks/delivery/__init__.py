"""Proofs of what brings packs to devices: pulls that are cut, fleets that update, signatures of others."""
