"""Forward and backward passes side by side: one torch thread each, their results in the order of the work.

Threads inside an operation wait for each other thousands of times a step, and long when something else runs on the
machine. Here whole passes run in parallel and are summed in a fixed order, so the result is the same bit for bit
whatever the number of threads.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

from ...edge.system.machine import usable_cpus

Item = TypeVar("Item")
Result = TypeVar("Result")


class Workers:
    """A pool of threads for passes; a context manager. Inside, torch runs every operation on one thread.

    Args:
        n_threads: how many passes run at once; None takes the cores that this process may use.
    """

    def __init__(self, n_threads: int | None = None) -> None:
        self.n_threads = n_threads or available_cores()
        self._pool = ThreadPoolExecutor(self.n_threads, thread_name_prefix="pass")
        self._before = torch.get_num_threads()

    def __enter__(self) -> "Workers":
        torch.set_num_threads(1)
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        torch.set_num_threads(self._before)

    def map(self, work: Callable[[Item], Result], items: Iterable[Item], *, in_order: bool = False) -> list[Result]:
        """The results in the order of `items`; `in_order` runs them one after another, for work that draws randomly."""
        if in_order:
            return [work(item) for item in items]
        return list(self._pool.map(work, items))


def available_cores() -> int:
    """Cores that this process may keep busy: its affinity and the CPU quotas of its control groups."""
    return usable_cpus()
