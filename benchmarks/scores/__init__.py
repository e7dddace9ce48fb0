"""The run that scores a pack: cells, answers, runner, endpoint."""
