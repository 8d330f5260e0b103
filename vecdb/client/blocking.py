"""The blocking clients, made of those with coroutines: each method runs its coroutine to the end and returns what it returns.

What cannot be a coroutine (`db[name]`, `len(docs)`, `for point in docs.scroll()`) is added here. Safe in any thread.
"""

from __future__ import annotations

import functools
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from ..errors import AlreadyExists
from ..points import Point
from ..schema import AUTO, Dtype, Field, Metric, checked_name
from .channel import Address, Blocking, run
from .collection import AsyncCollection, Prepared
from .database import AsyncDatabase
from .embedding import AsyncEmbedding

if TYPE_CHECKING:
    from ..embed import Encoder
    from ..ingest.load import Progress as Ingested
    from ..ingest.load import Summary
    from ..ingest.peers.hnswlib import Progress

P = ParamSpec("P")
T = TypeVar("T")


def _blocking(method: Callable[Concatenate[Any, P], Coroutine[Any, Any, T]]) -> Callable[Concatenate[Any, P], T]:
    @functools.wraps(method)
    def call(self: Any, *args: P.args, **kwargs: P.kwargs) -> T:
        return run(method(self._remote, *args, **kwargs))

    return call  # type: ignore[return-value]  # self may also be given by name, which nobody does


class RemotePrepared:
    """As `vecdb.writes.Prepared`."""

    def __init__(self, remote: Prepared) -> None:
        self._remote, self.batch = remote, remote.batch

    commit = _blocking(Prepared.commit)
    release = _blocking(Prepared.release)


class RemoteEmbedding:
    """As `vecdb.embed.Embedding`."""

    def __init__(self, remote: AsyncEmbedding) -> None:
        self._remote = remote

    of_points = _blocking(AsyncEmbedding.of_points)
    of_queries = _blocking(AsyncEmbedding.of_queries)


class RemoteCollection:
    """A collection on a server. Its methods are those of `vecdb.Collection`."""

    def __init__(self, remote: AsyncCollection) -> None:
        self._remote = remote

    upsert = _blocking(AsyncCollection.upsert)
    insert = _blocking(AsyncCollection.insert)
    checkpoints = _blocking(AsyncCollection.checkpoints)
    set_checkpoints = _blocking(AsyncCollection.set_checkpoints)
    check = _blocking(AsyncCollection.check)
    delete = _blocking(AsyncCollection.delete)
    update_payload = _blocking(AsyncCollection.update_payload)
    flush = _blocking(AsyncCollection.flush)
    merge = _blocking(AsyncCollection.merge)
    vacuum = _blocking(AsyncCollection.vacuum)
    verify = _blocking(AsyncCollection.verify)
    set_index = _blocking(AsyncCollection.set_index)
    rebuild_index = _blocking(AsyncCollection.rebuild_index)
    export_codes = _blocking(AsyncCollection.export_codes)
    get = _blocking(AsyncCollection.get)
    count = _blocking(AsyncCollection.count)
    sample = _blocking(AsyncCollection.sample)
    search = _blocking(AsyncCollection.search)
    search_batch = _blocking(AsyncCollection.search_batch)
    search_hybrid = _blocking(AsyncCollection.search_hybrid)
    calibrate = _blocking(AsyncCollection.calibrate)
    recommend = _blocking(AsyncCollection.recommend)  # type: ignore[arg-type]
    info = _blocking(AsyncCollection.info)

    def prepare(self, ids: Any, vectors: Any, payloads: Any) -> RemotePrepared:
        """As `vecdb.Collection.prepare`."""
        return RemotePrepared(run(self._remote.prepare(ids, vectors, payloads)))

    def scroll(
        self, where: Any = None, *, with_vectors: bool = False, with_payload: bool = True, limit: int | None = None
    ) -> Iterator[Point]:
        """As `vecdb.Collection.scroll`: as of the moment of the call."""
        points = self._remote.scroll(where, with_vectors=with_vectors, with_payload=with_payload, limit=limit)
        first = _next(points)  # so that the snapshot is taken, and mistakes are told, before this returns
        return _iterate(first, points)

    @property
    def embedding(self) -> RemoteEmbedding:
        return RemoteEmbedding(self._remote.embedding)

    @property
    def uuid(self) -> bytes:
        return self._remote.uuid

    @property
    def name(self) -> str:
        return str(run(self._remote.described()).name)

    @property
    def fields(self) -> dict[str, Field]:
        """What it is declared to hold."""
        return self.info().fields

    def __len__(self) -> int:
        return self.count()

    def __contains__(self, key: object) -> bool:
        return (
            isinstance(key, int | str)
            and not isinstance(key, bool)
            and self.get([key], with_vectors=False, with_payload=False)[0] is not None
        )

    def __repr__(self) -> str:
        return repr(self._remote)


class RemoteDatabase:
    """A database on a server, from `vecdb.connect`. A context manager: leaving the block closes the connection."""

    def __init__(self, remote: AsyncDatabase) -> None:
        self._remote = remote

    collections = _blocking(AsyncDatabase.collections)
    drop_collection = _blocking(AsyncDatabase.drop_collection)
    rename_collection = _blocking(AsyncDatabase.rename_collection)
    add_field = _blocking(AsyncDatabase.add_field)
    verify = _blocking(AsyncDatabase.verify)
    vacuum = _blocking(AsyncDatabase.vacuum)
    backup = _blocking(AsyncDatabase.backup)
    info = _blocking(AsyncDatabase.info)
    flush = _blocking(AsyncDatabase.flush)
    pause_indexing = _blocking(AsyncDatabase.pause_indexing)
    resume_indexing = _blocking(AsyncDatabase.resume_indexing)
    close = _blocking(AsyncDatabase.close)

    def create_collection(
        self,
        name: str,
        schema: Field | Mapping[str, Field] | None = None,
        *,
        embed: str | Encoder | None = None,
        token: bytes | None = None,
    ) -> RemoteCollection:
        """As `vecdb.Database.create_collection`."""
        return RemoteCollection(run(self._remote.create_collection(name, schema, embed=embed, token=token)))

    def collection(self, name: str, *, embed: Encoder | None = None) -> RemoteCollection:
        """As `vecdb.Database.collection`."""
        return RemoteCollection(run(self._remote.collection(name, embed=embed)))

    def ingest(
        self,
        collection: str,
        files: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
        *,
        progress: Callable[[Ingested], None] | None = None,
        **how: Any,
    ) -> Summary:
        """As `vecdb.Database.ingest`: files of this machine, read here."""
        from ..ingest.plan import plan_of

        return plan_of(self, collection, files, **how).run(progress)

    def import_hnswlib(
        self,
        name: str,
        path: str | os.PathLike[str],
        *,
        metric: Metric,
        dtype: Dtype = "f32",
        index: Any = AUTO,
        batch: int | None = None,
        progress: Callable[[Progress], None] | None = None,
    ) -> RemoteCollection:
        """As `vecdb.Database.import_hnswlib`: a file of this machine, read here."""
        if checked_name(name) in self:
            raise AlreadyExists(f"collection {name!r} exists; choose another name, or drop it first")
        from ..ingest.peers.hnswlib import import_file

        import_file(self, name, path, metric, dtype, index, batch, progress)
        return self.collection(name)

    def __getitem__(self, name: str) -> RemoteCollection:
        return self.collection(name)

    def __contains__(self, name: object) -> bool:
        return run(self._remote.has(name))

    def __iter__(self) -> Iterator[str]:
        return iter(self.collections())

    def __len__(self) -> int:
        return len(self.collections())

    def __enter__(self) -> RemoteDatabase:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return repr(self._remote)


_END = object()


def _next(points: AsyncIterator[Point]) -> Any:
    async def step() -> Any:
        try:
            return await anext(points)
        except StopAsyncIteration:
            return _END

    return run(step())


def _iterate(first: Any, points: Any) -> Iterator[Point]:
    try:
        while first is not _END:
            yield first
            first = _next(points)
    finally:
        run(points.aclose())  # a scroll that is left early ends on the server, too


def connect(
    url: str,
    *,
    api_key: str | None = None,
    ca: str | None = None,
    cert: str | None = None,
    key: str | None = None,
    timeout: float | None = None,
    retries: int = 6,
) -> RemoteDatabase:
    """A database on a server: `grpc://host:port`, or `grpcs://host:port` over TLS. The methods are those of `vecdb.open`'s.

    api_key: made by `vecdb keys create`; left out, the environment's VECDB_API_KEY. ca: a file of certificates to believe, in
    PEM; left out, those of the system. cert, key: the client's own, where the server asks for one. timeout: seconds for each
    call that does not say its own; left out, as long as it takes. retries: of calls that failed on their way, where that
    is safe. One connection, to be kept and shared by threads.

    Raises Unavailable, Unauthenticated, InvalidInput, NotFound.
    """
    address = address_of(url, api_key, ca, cert, key, timeout, retries)
    return RemoteDatabase(run(AsyncDatabase.over(Blocking(address))))


def address_of(
    url: str, api_key: str | None, ca: str | None, cert: str | None, key: str | None, timeout: float | None, retries: int
) -> Address:
    """With what the environment says where nothing else was said."""
    api_key = api_key or os.environ.get("VECDB_API_KEY") or None
    if url.startswith("grpcs:"):
        ca, cert, key = (
            given or os.environ.get(name) or None
            for given, name in ((ca, "VECDB_CA"), (cert, "VECDB_CERT"), (key, "VECDB_KEY"))
        )
    return Address.of(url, api_key, ca, cert, key, timeout, retries)
