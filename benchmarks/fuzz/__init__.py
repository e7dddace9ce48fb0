"""Damaged files by the thousand, each through the product's own readers: found is what ends, hangs or fills it."""
