"""vecdb: an embedded-first vector database.

    import vecdb
    from vecdb import Dense, F

    db = vecdb.open("my.db")
    docs = db.create_collection("docs", Dense(384))
    docs.upsert(ids=ids, vectors=X, payloads=payloads)
    hits = docs.search(q, k=10, where=F("year") >= 2020)

The names below are the public ones; each is loaded when it is first used, so that `import vecdb` costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from . import aio, errors
    from .client.blocking import connect
    from .collection import Collection
    from .database import Database
    from .database import open_database as open
    from .database import restore_database as restore
    from .filters import F
    from .hits import BatchHits, Group, Hit, Hits
    from .info import IndexInfo, Info
    from .points import Point
    from .schema import Dense, Sparse
    from .serverless.collection import CodesCollection, open_codes
    from .sparse import SparseVector

__all__ = [
    "BatchHits", "CodesCollection", "Collection", "Database", "Dense", "F", "Group", "Hit", "Hits", "IndexInfo", "Info",
    "Point", "Sparse", "SparseVector", "aio", "connect", "errors", "open", "open_codes", "restore",
]  # fmt: skip

_HOME = {
    "BatchHits": "hits",
    "CodesCollection": "serverless.collection",
    "Collection": "collection",
    "Database": "database",
    "Dense": "schema",
    "F": "filters",
    "Group": "hits",
    "Hit": "hits",
    "Hits": "hits",
    "IndexInfo": "info",
    "Info": "info",
    "Point": "points",
    "Sparse": "schema",
    "SparseVector": "sparse",
    "connect": "client.blocking",
    "open": "database",
    "open_codes": "serverless.collection",
    "restore": "database",
}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name in ("aio", "errors"):
        return import_module(f".{name}", __name__)
    if name not in _HOME:
        raise AttributeError(f"module 'vecdb' has no attribute {name!r}")
    module = import_module("." + _HOME[name], __name__)
    value = getattr(module, f"{name}_database" if name in ("open", "restore") else name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
