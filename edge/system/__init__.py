"""The operating system's side: CPUs, memory limits, this process's mappings, huge pages."""
