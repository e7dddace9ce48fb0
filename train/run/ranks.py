"""Several processes on one run, as `accelerate launch` or torchrun starts them; one where nothing was launched.

    accelerate launch --multi_gpu --num_processes 2 -m slm_edge.edge train my.toml
    torchrun --nproc-per-node 2 -m slm_edge.edge train my.toml --device cpu

More processes than GPUs share them and speak through gloo, as NCCL takes one process a GPU: for trying it out, not for
speed.

A step's passes are dealt out to the processes and their gradients summed, so that the recipe means the same on any
number: `batch` is the rows of a step over all of them. Sums over processes round otherwise in the last bits.
"""

import os
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

Item = TypeVar("Item")


def is_first_process() -> bool:
    """Whether this process is the one that writes and speaks."""
    return os.environ.get("RANK", "0") == "0"


class Ranks:
    """The processes of a run; a context manager that leaves their group at the end.

    Attributes:
        n: how many there are.
        index: which one this is, from 0; the first writes the files.
    """

    def __init__(self, device: str = "cpu") -> None:
        self.n = int(os.environ.get("WORLD_SIZE", "1"))
        self.index = int(os.environ.get("RANK", "0"))
        self._state: Any = None
        self._gloo = False
        if self.n > 1:
            # Before the group: imported later, its functions' defaults keep the group and its threads for good, and a
            # gloo thread that drops its last message while Python shuts down aborts the process
            import torch.distributed.nn
            from accelerate import PartialState

            shared = device != "cpu" and self.on_this_host > torch.cuda.device_count()
            self._gloo = shared or device == "cpu"
            self._state = PartialState(cpu=device == "cpu", **({"backend": "gloo"} if shared else {}))

    def __enter__(self) -> "Ranks":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if self._state is not None:
            if kind is None:
                self.wait()
            self._state.destroy_process_group()

    def wait(self) -> None:
        """Waits until all processes are here."""
        if self._state is None:
            return
        if self._gloo:
            torch.distributed.barrier()
        else:
            self._state.wait_for_everyone()

    def device(self, kind: str) -> str:
        """This process's device of a kind: with several GPUs each process has its own."""
        return kind if self._state is None or kind == "cpu" else str(self._state.device)

    @property
    def on_this_host(self) -> int:
        """How many of them share this machine's cores."""
        return int(os.environ.get("LOCAL_WORLD_SIZE", str(self.n)))

    def mine(self, items: Sequence[Item]) -> list[Item]:
        """This process's share of a step's passes."""
        return list(items[self.index :: self.n])

    def sum_(self, tensors: Sequence[Tensor], numbers: Sequence[float]) -> list[float]:
        """Sums tensors in place and numbers over all processes, in two messages.

        Returns:
            the summed numbers.
        """
        if self.n == 1:
            return list(numbers)
        own = torch.tensor(numbers, dtype=torch.float64, device=self._state.device)
        torch.distributed.all_reduce(own)
        if tensors:
            flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
            torch.distributed.all_reduce(flat)
            at = 0
            for tensor in tensors:
                tensor.copy_(flat[at : at + tensor.numel()].view_as(tensor))
                at += tensor.numel()
        return [float(number) for number in own]
