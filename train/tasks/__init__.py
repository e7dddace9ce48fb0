"""The tasks that can be trained: a file here is a task, and its name is the task's."""
