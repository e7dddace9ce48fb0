"""One training run: job, loop, loss, batches, saves, recipe files."""
