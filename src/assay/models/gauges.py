"""Gauges: free memory, what a forward pass holds, and what it gives when nothing is rounded to float32."""

import os
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def free_memory(device: torch.device) -> int:
    """Bytes that can still be taken on a device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


class PeakMemory(TorchDispatchMode):
    """Counts the bytes that operations make and hold while it is on, on any device.

    Counted are whole storages, once each, from the operation that makes them to their release; the module's
    own weights and buffers are not. Workspace inside a single kernel cannot be seen.

    Args:
        module: the module whose weights are not counted.

    Attributes:
        live: bytes held now.
        peak: most bytes held at once.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._held: dict[int, int] = {}
        self._weights = {t.untyped_storage().data_ptr() for t in (*module.parameters(), *module.buffers())}

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run the operation, then count what it made."""
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage())
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        address = storage.data_ptr()
        if address in self._weights or address in self._held:
            return
        self._held[address] = storage.nbytes()
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._release, address)

    def _release(self, address: int) -> None:
        self.live -= self._held.pop(address)


class KeepFloat64(TorchFunctionMode):
    """Keeps a float64 module in float64 where its code asks for float32.

    Norms, rotary tables and softmaxes are written to compute in float32 whatever the weights are; in a copy
    made to judge float32, those casts would hide the very rounding that is being measured.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run the operation with every float32 among its arguments replaced by float64."""
        if func is Tensor.float:
            return args[0].double()
        named = {name: _doubled(value) for name, value in (kwargs or {}).items()}
        return func(*(_doubled(value) for value in args), **named)


def _doubled(argument: Any) -> Any:
    return torch.float64 if argument is torch.float32 else argument
