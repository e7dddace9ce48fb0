"""What was pulled, by content: blobs by sha256, versions of packs and models linked from them, names that switch."""
