"""The folder that a device gets: manifest, task cards, sources, pull, build, change."""
