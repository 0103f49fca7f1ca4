"""What tells one function from another, and one module: a hash of how it is written and of what it holds on to.

Followed are, from a function, what it closes over, its defaults, and of the names of its file that it uses the values
kept there, the functions and classes written there and their instances; from an instance its class, and its attributes.
What is installed as a library counts by its name; of its modules also what they show, and the numbers and texts they
keep.
"""

import functools
import hashlib
import inspect
import json
import re
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from types import CodeType, FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from assay.models.anatomy import text_config

PLAIN = (bool, int, float, complex, str, bytes, type(None))
HELD = (*PLAIN, Tensor, np.ndarray, nn.Module, tuple, list, dict, set, frozenset, functools.partial)
"""Values that are followed wherever they are named."""
_DEEPEST = 6
"""Of values inside values, an object's attributes being two deep; what is deeper counts by its type."""
_INSTALLED = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})
_ASIDE = {"architectures", "dtype", "name_or_path", "torch_dtype", "training", "transformers_version"}
"""Names, versions and modes, which decide no number; the dtype is that of the weights."""
_BOOKKEEPING = vars(nn.Module()).keys()
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def identity(function: Any) -> str:
    """Name a callable with a hash: equal for equal source and held values, in this process and in another.

    Args:
        function: a function, a ``functools.partial``, a bound method or an object with ``__call__``.

    Returns:
        Its qualified name and twelve hexadecimal digits, ``"potential 3f0a9c41d2b7"``.
    """
    bare = function
    while isinstance(bare, functools.partial):
        bare = bare.func
    return f"{getattr(bare, '__qualname__', type(bare).__qualname__)} {_hash(_parts(function, 0, {}))[:12]}"


def architecture(module: nn.Module) -> str:
    """Hash what decides a module's outputs beside its weights and buffers.

    These are the settings of its configuration, if it has one (epsilon, heads, rotary base, the implementation of
    attention), without paths, names and versions; its tree as PyTorch shows it; hooks; the numbers and texts that parts
    of a library keep as attributes; and how parts of your own are written, and all that they keep.

    Args:
        module: of any kind.

    Returns:
        Hexadecimal digits: equal for a copy, in this process and in another, and wherever a model was loaded from.
    """
    return _hash(_computing(module, 0, {}))


def hooks_of(part: nn.Module) -> list[Any]:
    """Give the hooks that run where a module is called, forward or backward."""
    kinds = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
    return [hook for kind in kinds for hook in vars(part)[kind].values()]


def _hash(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
        digest.update(b"\0")
    return digest.hexdigest()


def _parts(value: Any, depth: int, met: dict[int, int]) -> Iterator[bytes]:  # noqa: PLR0912 (one case a kind of value)
    """Give what tells a value from others; of functions, classes and objects that were met before, which it is."""
    if isinstance(value, PLAIN):
        yield repr(value).encode()
        return
    yield type(value).__qualname__.encode()
    if isinstance(value, Tensor):
        yield f"{tuple(value.shape)} {value.dtype}".encode()
        yield value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    elif isinstance(value, np.ndarray) and not value.dtype.hasobject:
        yield f"{value.shape} {value.dtype}".encode()
        yield value.tobytes()
    elif inspect.ismodule(value) or inspect.isbuiltin(value):
        yield value.__name__.encode()
    elif depth > _DEEPEST:
        return
    elif isinstance(value, functools.partial):
        yield from _all((value.func, value.args, value.keywords), depth, met)
    elif isinstance(value, tuple | list):
        yield from _all(value, depth + 1, met)
    elif isinstance(value, set | frozenset):
        yield from _all(sorted(value, key=repr), depth + 1, met)
    elif isinstance(value, dict):
        yield from _named(value, depth + 1, met)
    elif inspect.ismethod(value):
        yield from _all((value.__func__, value.__self__), depth, met)
    elif isinstance(value, staticmethod | classmethod):
        yield from _parts(value.__func__, depth, met)
    elif id(value) in met:
        yield str(met[id(value)]).encode()
    else:
        met[id(value)] = len(met)
        yield from _once(value, depth, met)


def _once(value: Any, depth: int, met: dict[int, int]) -> Iterator[bytes]:
    if inspect.isfunction(value):
        yield from _function(value, met)
    elif inspect.isclass(value):
        yield from _class(value, met)
    elif isinstance(value, property):
        yield from _all((value.fget, value.fset), depth, met)
    elif isinstance(value, nn.Module):
        yield from _named(dict(value.named_parameters()) | dict(value.named_buffers()), depth + 1, met)
        yield from _computing(value, depth + 1, met)
    elif hasattr(value, "__dict__"):
        yield from _parts(type(value), depth, met)
        yield from _named(_settings(value) if hasattr(value, "to_dict") else vars(value), depth + 2, met)
    elif " at 0x" not in (written := repr(value)):  # which would be another in another process
        yield written.encode()


def _function(function: FunctionType, met: dict[int, int]) -> Iterator[bytes]:
    yield _name(function)
    used = dict[str, Any]()
    if not _is_installed(function):
        yield _source(function)
        names = {name for part in _codes(function.__code__) for name in part.co_names}
        places = {name: it for name, it in function.__globals__.items() if name in names}
        used = {name: it for name, it in places.items() if _belongs(it, function.__module__)}
    held = inspect.getclosurevars(function).nonlocals
    yield from _all((dict(held), function.__defaults__, function.__kwdefaults__), 0, met)
    yield from _named(used, 0, met)


def _class(written: type, met: dict[int, int]) -> Iterator[bytes]:
    for each in written.__mro__:
        yield _name(each)
        if not _is_installed(each):
            members = {
                name: it
                for name, it in vars(each).items()
                if not name.startswith("__") or inspect.isfunction(it)
            }
            yield from _named(members, 0, met)


def _computing(module: nn.Module, depth: int, met: dict[int, int]) -> Iterator[bytes]:
    """Give what tells a module from others of the same weights and buffers."""
    config = text_config(module)
    shown = [_settings(config), getattr(config, "_attn_implementation", None), repr(module)]
    yield _ADDRESS.sub("", json.dumps(shown, sort_keys=True, default=repr)).encode()
    for name, part in module.named_modules():
        yield name.encode()
        yield from _all((type(part), *hooks_of(part)), depth, met)
        kept = {key: it for key, it in vars(part).items() if key not in _BOOKKEEPING}
        if _is_installed(type(part)):
            kept = {key: it for key, it in _told(kept).items() if isinstance(it, (*PLAIN, tuple))}
        yield from _named(kept, depth, met)


def _settings(config: Any) -> dict[str, Any]:
    """Give the settings of a configuration."""
    return _told(config.to_dict() if hasattr(config, "to_dict") else getattr(config, "__dict__", {}))


def _told(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if not (name in _ASIDE or name.startswith("_"))}


def _belongs(value: Any, module: str) -> bool:
    """Whether a global value is the user's own: kept in the file, or written in it."""
    written = value if inspect.isfunction(value) or inspect.isclass(value) else type(value)
    return isinstance(value, HELD) or written.__module__ == module


def _is_installed(written: Any) -> bool:
    """Whether a function or a class, by its methods, is a library's."""
    each = [written] if inspect.isfunction(written) else filter(inspect.isfunction, vars(written).values())
    files = [function.__code__.co_filename for function in each]
    return bool(files) and all(file.startswith(_INSTALLED) for file in files)


def _all(values: Iterable[Any], depth: int, met: dict[int, int]) -> Iterator[bytes]:
    for value in values:
        yield from _parts(value, depth, met)


def _named(values: dict[Any, Any], depth: int, met: dict[int, int]) -> Iterator[bytes]:
    for name, value in sorted(values.items(), key=lambda item: str(item[0])):
        yield str(name).encode()
        yield from _parts(value, depth, met)


def _name(written: Any) -> bytes:
    """Its name; of what is a library's with that of the module, of the user's without, which may run as a script."""
    place = f"{written.__module__}." if _is_installed(written) else ""
    return f"{place}{written.__qualname__}".encode()


def _source(function: FunctionType) -> bytes:
    """How it is written; of what was typed at a prompt the compiled instructions."""
    try:
        return inspect.getsource(function).encode()
    except (OSError, TypeError):
        return b"".join(_instructions(function.__code__))


def _codes(code: CodeType) -> Iterator[CodeType]:
    """Give a function's code, and that of what is written inside it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _instructions(code: CodeType) -> Iterator[bytes]:
    for part in _codes(code):
        yield part.co_code
        yield repr(part.co_names).encode()
        for constant in part.co_consts:
            if isinstance(constant, frozenset):
                yield repr(sorted(constant, key=repr)).encode()
            elif not isinstance(constant, CodeType):
                yield repr(constant).encode()
