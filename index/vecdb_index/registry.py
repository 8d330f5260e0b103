"""The index backends by name. Those of this package are imported when they are first asked for; others register themselves."""

from __future__ import annotations

from importlib import import_module
from typing import Any, Literal

from .contract import Backend

_OWN = {
    "flat": "Flat",
    "hnsw": "HNSW",
    "mib": "MIB",
    "seismic": "Seismic",
}  # name, also of the folder -> its class of parameters
_SPARSE = {"seismic"}  # those of sparse vectors; "flat" serves both kinds
_registered: dict[str, Backend] = {}


def register(backend: Backend) -> None:
    """Makes a backend known under its name, in this process. Raises ValueError if that is taken by another."""
    if backend.name in _OWN or _registered.get(backend.name, backend) is not backend:
        raise ValueError(f"an index backend named {backend.name!r} exists")
    _registered[backend.name] = backend


def names() -> list[str]:
    """All known backends, sorted."""
    return sorted({*_OWN, *_registered})


def serves(name: str, kind: Literal["dense", "sparse"]) -> bool:
    """Whether a backend is one of such vectors; its kernels are not loaded. Raises KeyError."""
    if name == "flat":
        return True
    mine = ("sparse" if name in _SPARSE else "dense") if name in _OWN else backend(name).kind
    return mine == kind


def backend(name: str) -> Backend:
    """Raises KeyError with the names that there are."""
    if name in _registered:
        return _registered[name]
    if name not in _OWN:
        raise KeyError(f"no index backend {name!r}; there are {', '.join(names())}")
    found: Backend = import_module(f".{name}.backend", __package__).BACKEND
    return found


def params(name: str) -> type[Any]:
    """The parameters of a backend, without loading its kernels. Raises KeyError."""
    if name not in _OWN:
        return backend(name).params
    found: type[Any] = getattr(import_module(f".{name}.params", __package__), _OWN[name])
    return found
