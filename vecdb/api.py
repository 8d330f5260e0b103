"""What a database and a collection can do, wherever they are: in this process (`vecdb.open`) or on a server (`vecdb.connect`).

Code that takes either says `Database` or `Collection` of this module. What each method means is told where it is embedded, in
`vecdb/database.py` and `vecdb/collection.py`; that the clients do the same is held by the tests in `tests/parity`, which are
the embedded API's own. The asyncio client has the same methods as coroutines.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

from .schema import AUTO

if TYPE_CHECKING:
    from vecdb_storage.backup import Backup
    from vecdb_storage.metrics import Metrics
    from vecdb_storage.vacuum import Vacuumed
    from vecdb_storage.verify import Report

    from .embed import Encoder
    from .filters import Expression
    from .hits import BatchHits, Hits
    from .info import Info
    from .ingest.load import Progress as Ingested
    from .ingest.load import Summary
    from .ingest.peers.hnswlib import Progress as Imported
    from .points import Point
    from .schema import Dtype, Field, Metric
    from .search.calibrate import Report as RecallReport
    from .search.fuse import How
    from .serverless.export import Exported

    Id = int | str
    Where = Expression | Mapping[str, Any] | str | None
    Told = Callable[[int, int], None]
    Path = str | os.PathLike[str]


class Prepared(Protocol):
    """Points that are ready to be committed, for loaders."""

    def commit(
        self, *, insert: bool = False, checkpoints: Mapping[bytes, bytes | None] | None = None, token: bytes | None = None
    ) -> int: ...
    def release(self) -> None: ...


class Embedding(Protocol):
    """The encoder of a collection."""

    def of_points(
        self, texts: Sequence[str], payloads: Any, accept: Callable[[Any, Any], object]
    ) -> tuple[dict[str, Any], Any]: ...
    def of_queries(self, texts: Sequence[str]) -> Any: ...


class Collection(Protocol):
    """Points with vectors and payloads."""

    @property
    def name(self) -> str: ...
    @property
    def uuid(self) -> bytes: ...
    @property
    def fields(self) -> dict[str, Field]: ...
    @property
    def embedding(self) -> Embedding: ...

    def upsert(
        self, points: Any = None, *, ids: Any = None, vectors: Any = None, payloads: Any = None, texts: Any = None,
        token: bytes | None = None,
    ) -> list[Id]: ...  # fmt: skip
    def insert(
        self, points: Any = None, *, ids: Any = None, vectors: Any = None, payloads: Any = None, texts: Any = None,
        token: bytes | None = None,
    ) -> list[Id]: ...  # fmt: skip
    def prepare(self, ids: Any, vectors: Any, payloads: Any) -> Prepared: ...
    def check(self, ids: Any, vectors: Any, payloads: Any) -> None: ...
    def checkpoints(self, prefix: bytes = b"") -> dict[bytes, bytes]: ...
    def set_checkpoints(self, checkpoints: Mapping[bytes, bytes | None]) -> None: ...
    def delete(self, ids: Any = None, *, where: Where = None, token: bytes | None = None) -> int: ...
    def update_payload(
        self, ids: Any = None, payload: Any = None, *, where: Where = None, replace: bool = False, remove: Iterable[str] = (),
        token: bytes | None = None,
    ) -> int: ...  # fmt: skip
    def flush(self, wait: bool = True) -> None: ...
    def merge(self, wait: bool = True) -> None: ...
    def vacuum(self, progress: Told | None = None) -> Vacuumed: ...
    def verify(self, *, repair: bool = False, progress: Told | None = None) -> Report: ...
    def set_index(self, index: Any, field: str | None = None, *, token: bytes | None = None) -> None: ...
    def rebuild_index(self, field: str | None = None) -> None: ...
    def export_codes(
        self, folder: Path, *, field: str | None = None, overwrite: bool = False, options: Mapping[str, Any] | None = None,
        progress: Told | None = None,
    ) -> Exported: ...  # fmt: skip

    def get(self, ids: Any, *, with_vectors: bool = True, with_payload: bool = True) -> list[Point | None]: ...
    def count(self, where: Where = None) -> int: ...
    def scroll(
        self, where: Where = None, *, with_vectors: bool = False, with_payload: bool = True, limit: int | None = None
    ) -> Iterator[Point]: ...
    def sample(
        self, count: int, *, where: Where = None, seed: int = 0, with_vectors: bool | Sequence[str] = True,
        with_payload: bool = True,
    ) -> list[Point]: ...  # fmt: skip
    def search(
        self, query: Any, k: int = 10, *, where: Where = None, field: str | None = None, recall: float | None = None,
        exact: bool = False, with_payload: bool = True, with_vectors: bool | Sequence[str] = False,
        score_threshold: float | None = None, score: str | None = None, group_by: str | None = None, group_size: int = 3,
        explain: bool = False, timeout: float | None = None,
    ) -> Any: ...  # fmt: skip
    def search_batch(
        self, queries: Any, k: int = 10, *, where: Where = None, field: str | None = None, recall: float | None = None,
        exact: bool = False, with_payload: bool = True, with_vectors: bool | Sequence[str] = False,
        score_threshold: float | None = None, score: str | None = None, explain: bool = False, timeout: float | None = None,
    ) -> BatchHits: ...  # fmt: skip
    def search_hybrid(
        self, queries: Mapping[str, Any], k: int = 10, *, fuse: How = "rrf", weights: Mapping[str, float] | None = None,
        where: Where = None, recall: float | None = None, exact: bool = False, with_payload: bool = True,
        with_vectors: bool | Sequence[str] = False, explain: bool = False, timeout: float | None = None,
    ) -> Hits: ...  # fmt: skip
    def calibrate(self, queries: Any, truth: Any = None, *, field: str | None = None) -> RecallReport: ...
    @property
    def recommend(self) -> Callable[..., Hits]: ...
    def info(self) -> Info: ...
    def __len__(self) -> int: ...
    def __contains__(self, key: object) -> bool: ...


class Database(Protocol):
    """Collections by name."""

    def create_collection(
        self, name: str, schema: Field | Mapping[str, Field] | None = None, *,
        embed: str | Encoder | None = None, token: bytes | None = None,
    ) -> Collection: ...  # fmt: skip
    def collection(self, name: str, *, embed: Encoder | None = None) -> Collection: ...
    def collections(self) -> list[str]: ...
    def drop_collection(self, name: str, *, token: bytes | None = None) -> None: ...
    def rename_collection(self, old: str, new: str, *, token: bytes | None = None) -> None: ...
    def add_field(self, collection: str, name: str, field: Field, *, token: bytes | None = None) -> None: ...
    def ingest(
        self, collection: str, files: Path | Iterable[Path], *, progress: Callable[[Ingested], None] | None = None, **how: Any
    ) -> Summary: ...
    def import_hnswlib(
        self, name: str, path: Path, *, metric: Metric, dtype: Dtype = "f32", index: Any = AUTO, batch: int | None = None,
        progress: Callable[[Imported], None] | None = None,
    ) -> Collection: ...  # fmt: skip
    def verify(self, *, repair: bool = False, progress: Told | None = None) -> Report: ...
    def vacuum(self, progress: Told | None = None) -> Vacuumed: ...
    def backup(
        self, where: Path, earlier: Path | None = None, *, link: bool = False, options: Mapping[str, Any] | None = None,
        progress: Told | None = None,
    ) -> Backup: ...  # fmt: skip
    def info(self) -> Metrics: ...
    def flush(self) -> None: ...
    def pause_indexing(self) -> None: ...
    def resume_indexing(self) -> None: ...
    def close(self) -> None: ...
    def __getitem__(self, name: str) -> Collection: ...
    def __contains__(self, name: object) -> bool: ...
    def __iter__(self) -> Iterator[str]: ...
    def __len__(self) -> int: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None: ...
