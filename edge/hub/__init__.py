"""The hub: how its places are written, what lies in a repository, and what other programs have fetched of it."""
