"""The index backends by name. Those of this package are imported when they are first asked for; others register themselves."""

from __future__ import annotations

from importlib import import_module

from .contract import Backend

_OWN = {"flat": "flat.backend", "hnsw": "hnsw.backend"}
_registered: dict[str, Backend] = {}


def register(backend: Backend) -> None:
    """Makes a backend known under its name, in this process. Raises ValueError if that is taken by another."""
    if backend.name in _OWN or _registered.get(backend.name, backend) is not backend:
        raise ValueError(f"an index backend named {backend.name!r} exists")
    _registered[backend.name] = backend


def names() -> list[str]:
    """All known backends, sorted."""
    return sorted({*_OWN, *_registered})


def backend(name: str) -> Backend:
    """Raises KeyError with the names that there are."""
    if name in _registered:
        return _registered[name]
    if name not in _OWN:
        raise KeyError(f"no index backend {name!r}; there are {', '.join(names())}")
    found: Backend = import_module(f".{_OWN[name]}", __package__).BACKEND
    return found
