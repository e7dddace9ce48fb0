"""One answer and many, whatever the engine: request, stream, batcher, settings, and what both sessions share."""
