"""Who made a pack: signatures, the keys that this machine trusts, and what it asks of which source."""
