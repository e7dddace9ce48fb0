"""Updates of packs from a signed channel: taken, tried, watched, and taken back where they fail."""
