"""Files are written whole or not at all: atomic writes, locks, hashes, the cache, journals, downloads."""
