"""What tells one function from another: its name and a hash of how it is written and of what it holds on to."""

import functools
import hashlib
import inspect
from collections.abc import Iterator
from types import CodeType
from typing import Any

import torch
from torch import Tensor, nn

PLAIN = (bool, int, float, complex, str, bytes, type(None))
_DEEPEST = 4  # of values inside values; what is nested deeper counts by its type


def identity(function: Any) -> str:
    """Name a callable with a hash: equal for equal source and held values, in this process and in another.

    Args:
        function: a function, a ``functools.partial``, a bound method or an object with ``__call__``.

    Returns:
        Its qualified name and twelve hexadecimal digits, ``"potential 3f0a9c41d2b7"``.
    """
    digest = hashlib.sha256()
    for part in _parts(function, 0):
        digest.update(part)
        digest.update(b"\0")
    bare = function
    while isinstance(bare, functools.partial):
        bare = bare.func
    return f"{getattr(bare, '__qualname__', type(bare).__qualname__)} {digest.hexdigest()[:12]}"


def _parts(value: Any, depth: int) -> Iterator[bytes]:  # noqa: PLR0911 (one case a kind of value)
    if isinstance(value, PLAIN):
        yield repr(value).encode()
        return
    yield type(value).__qualname__.encode()
    if depth > _DEEPEST:
        return
    if isinstance(value, Tensor):
        yield f"{tuple(value.shape)} {value.dtype}".encode()
        yield value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    elif isinstance(value, functools.partial):
        yield from _all((value.func, value.args, value.keywords), depth)
    elif inspect.isfunction(value):
        yield _source(value)
        used = inspect.getclosurevars(value)
        ours = {name: it for name, it in used.globals.items() if _belongs(it, value.__module__)}
        yield from _all((dict(used.nonlocals), ours, value.__defaults__, value.__kwdefaults__), depth)
    elif inspect.ismethod(value):
        yield from _all((value.__func__, value.__self__), depth)
    elif isinstance(value, tuple | list):
        yield from _all(value, depth)
    elif isinstance(value, dict):
        yield from _all(sorted(value.items(), key=lambda item: str(item[0])), depth)
    elif isinstance(value, nn.Module):
        yield from _all((dict(value.named_parameters()), dict(value.named_buffers()), str(value)), depth)
    elif inspect.isclass(value) or inspect.ismodule(value) or inspect.isbuiltin(value):
        yield value.__name__.encode()
    else:
        yield _source(type(value))
        yield from _all((getattr(value, "__dict__", {}),), depth)


def _belongs(value: Any, module: str) -> bool:
    """Whether a global value is the user's own: a plain number or text, or a function of the same file."""
    return isinstance(value, PLAIN) or (inspect.isfunction(value) and value.__module__ == module)


def _all(values: Any, depth: int) -> Iterator[bytes]:
    for value in values:
        yield from _parts(value, depth + 1)


def _source(written: Any) -> bytes:
    """How it is written; of what was typed at a prompt the compiled instructions, of a foreign class its name."""
    try:
        return inspect.getsource(written).encode()
    except (OSError, TypeError):
        code = getattr(written, "__code__", None)
        return b"".join(_instructions(code)) if code else written.__qualname__.encode()


def _instructions(code: CodeType) -> Iterator[bytes]:
    yield code.co_code
    yield repr(code.co_names).encode()
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _instructions(constant)
        else:
            yield repr(constant).encode()
