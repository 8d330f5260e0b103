"""A database: a directory of collections, and the first thing a user opens.

Thin: names and schemas are checked here, everything else is the store's. Safe in any thread.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from vecdb_index.cores import usable
from vecdb_storage.backup import Backup, restore
from vecdb_storage.metrics import Metrics
from vecdb_storage.registry import open_store, temporary_store
from vecdb_storage.store import Store
from vecdb_storage.vacuum import Vacuumed
from vecdb_storage.verify import Report

from .collection import Collection
from .errors import AlreadyExists, Closed, InvalidInput, NotFound, Unsupported
from .points import checked_token
from .schema import AUTO, Dtype, Field, Metric, checked_field, checked_name, fields_of
from .search.executor import Executor
from .upkeep.indexing import indexer_of
from .upkeep.probing import Prober
from .upkeep.verifying import index_problems

if TYPE_CHECKING:
    from .embed import Encoder
    from .ingest.load import Progress as Ingested
    from .ingest.load import Summary
    from .ingest.peers.hnswlib import Progress


_NAMED = 20  # collections that an error names


def open_database(
    path: str | os.PathLike[str],
    read_only: bool = False,
    threads: int | None = None,
    *,
    memory_limit: int | None = None,
    recall_probe: float = 0.0,
) -> Database:
    """Opens the database in directory `path`, creating it if there is none; ":memory:" is a temporary one.

    read_only: follow a database that this or another process writes; new commits are seen at the next call.
    threads: of search kernels; default: the cores this process may use. One process may write, any number read.
    memory_limit: bytes that the building of an index may take, beside the rows; default: half of what is free then.
    recall_probe: share of searches, say 0.001, that are run again exactly when nothing else is asked; see `info().indexes`.
    Raises Locked, NotFound (read_only and nothing there), Corruption, NewerFormat, StorageError, Unsupported.
    """
    if sys.platform not in ("linux", "darwin"):
        raise Unsupported(f"vecdb runs on Linux and macOS, not on {sys.platform}; under Windows use WSL")
    if threads is None:
        threads = usable()
    if isinstance(threads, bool) or not isinstance(threads, int) or threads < 1:
        raise InvalidInput(f"threads must be a whole number from 1 up, not {threads!r}")
    if memory_limit is not None and (isinstance(memory_limit, bool) or not isinstance(memory_limit, int) or memory_limit < 1):
        raise InvalidInput(f"memory_limit must be a whole number of bytes from 1 up, not {memory_limit!r}")
    if isinstance(recall_probe, bool) or not isinstance(recall_probe, int | float) or not 0 <= recall_probe <= 1:
        raise InvalidInput(f"recall_probe must be a share from 0 to 1, not {recall_probe!r}")
    if os.fspath(path) == ":memory:":
        if read_only:
            raise InvalidInput("a :memory: database is new and empty, so it cannot be read-only")
        store = temporary_store()
    elif not os.fspath(path):
        raise InvalidInput('the path is empty; give a directory, or ":memory:"')
    else:
        if "://" in os.fspath(path):
            said = os.fspath(path).partition("?")[0]
            raise InvalidInput(
                f"{said} is a URL: vecdb.connect takes a server's (grpc://), vecdb.open_codes that of exported codes"
            )
        if os.path.isfile(path):
            raise InvalidInput(f"{os.fspath(path)} is a file; a database is a directory")
        store = open_store(path, read_only=read_only)
    return Database(store, read_only, threads, memory_limit, recall_probe)


def restore_database(
    where: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    options: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Makes a database of a backup, in directory `path`, which is empty or not there; open it afterwards.

    where: what was given to `Database.backup`. Every file is compared with its checksum, and the database is there when all
    were right, not before. Raises NotFound, AlreadyExists, Corruption, NewerFormat, DiskFull, StorageError.
    """
    restore(_location(where), Path(path), options=options, progress=progress)


def _location(where: str | os.PathLike[str]) -> str:
    """A directory or URL as text."""
    return os.fspath(where)


class Database:
    """Use `vecdb.open`. A context manager: leaving the block closes it."""

    def __init__(self, store: Store, read_only: bool, threads: int, memory_limit: int | None, recall_probe: float) -> None:
        self._store, self._read_only = store, read_only
        self._executor = Executor(threads)
        self._indexer = None if read_only else indexer_of(store, threads, memory_limit)
        self._prober = Prober(recall_probe) if recall_probe else None
        self._lock = threading.Lock()
        self._open: dict[bytes, Collection] = {}
        self._closed = False

    def create_collection(
        self,
        name: str,
        schema: Field | Mapping[str, Field] | None = None,
        *,
        embed: str | Encoder | None = None,
        token: bytes | None = None,
    ) -> Collection:
        """A new, empty collection. Raises AlreadyExists or InvalidInput.

        schema: `Dense(384)`, `Sparse()`, or named fields `{"body": Dense(384), "terms": Sparse()}`. embed: "tfidf", "bm25", or
        an encoder object, to turn texts into vectors of one field; the schema may then be left out.
        token: 1 to 64 bytes of the caller's choice; a call with a token that was seen in the last 24 hours changes nothing and
        returns what the first one returned.
        """
        once = checked_token(token, f"create_collection {name!r}")
        checked_name(name)
        if embed is None:
            if schema is None:
                raise InvalidInput("say what the vectors are: create_collection(name, Dense(384)), or give embed=")
            declared: dict[str, Any] = {"fields": {n: d.to_json() for n, d in fields_of(schema).items()}, "ids": None}
        else:
            from .embed import declare

            declared = declare(schema, embed)
        uuid = self._writable().create_collection(name, declared, once)
        collection = self._collection(uuid)
        if embed is not None and (once is None or uuid in self._store.collections().values()):  # it may be dropped by now
            collection.embedding.adopt(embed)
        return collection

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
    ) -> Collection:
        """A new collection of what `hnswlib.Index.save_index` wrote to `path`; hnswlib itself is not needed.

        ids are the labels. Elements that are marked as deleted are left out. metric: the space the index was made with, which
        the file does not say; "cosine" files hold normalised vectors. dtype, index: as in `Dense`. batch: points in a commit;
        left out, about 128 MiB of them. progress: called after each commit with an object that has imported, deleted and total.

        Until it is complete, the collection has the name with ".importing" added; on any error it is dropped. Raises
        AlreadyExists, NotFound, StorageError, ReadOnly; InvalidInput, InvalidVector, InvalidId, DuplicateId name the file.
        """
        if self._writable().uuid_of(checked_name(name)) is not None:
            raise AlreadyExists(f"collection {name!r} exists; choose another name, or drop it first")
        from .ingest.peers.hnswlib import import_file

        import_file(self, name, path, metric, dtype, index, batch, progress)
        return self.collection(name)

    def ingest(
        self,
        collection: str,
        files: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
        *,
        progress: Callable[[Ingested], None] | None = None,
        **how: Any,
    ) -> Summary:
        """Files into a collection, which is created if there is none: Parquet, Arrow, JSON lines, CSV, NumPy, HDF5, fvecs …

        files: paths, folders, globs, URLs or "-". how: `id`, `vectors`, `payload`, `without`, `rename`, `text`: which columns;
        left out, they are guessed. `metric`, `dtype`, `index`, `embed`, `create`: of a new collection. `on_error`, `rejects`,
        `insert`, `first_id`, `chunk`, `overlap`, `batch_bytes`, `restart`, `format`, `dataset`, `ids`, `types`,
        `storage_options`: see `vecdb.ingest.plan`. A run that was cut short goes on where its last commit ended when the same
        call is made again. progress: called after each commit.

        Raises InvalidFile, which names file, row and column, NotFound, InvalidInput, Unsupported, StorageError.
        """
        self._writable()
        from .ingest.plan import plan_of

        return plan_of(self, collection, files, **how).run(progress)

    def collection(self, name: str, *, embed: Encoder | None = None) -> Collection:
        """An existing collection. embed: the encoder of its texts, if it was created with an encoder object.

        Raises NotFound, or EncoderMismatch when its texts were embedded by another encoder.
        """
        uuid = self._store_open().uuid_of(name)
        if uuid is None:
            names = self.collections()
            some = [*names[:_NAMED], *(["…"] if len(names) > _NAMED else [])]
            raise NotFound(f"no collection {name!r}; there are: {', '.join(some) or 'none'}")
        collection = self._collection(uuid)
        if embed is not None:
            collection.embedding.adopt(embed)
        return collection

    def collection_of(self, uuid: bytes) -> Collection:
        """The collection that has this `uuid`, whatever it is called now. Raises NotFound."""
        self._store_open().state(uuid)
        return self._collection(uuid)

    def __getitem__(self, name: str) -> Collection:
        return self.collection(name)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._store_open().uuid_of(name) is not None

    def __iter__(self) -> Iterator[str]:
        return iter(self.collections())

    def __len__(self) -> int:
        return len(self.collections())

    def _collection(self, uuid: bytes) -> Collection:
        with self._lock:
            found = self._open.get(uuid)
            if found is None:
                found = self._open[uuid] = Collection(self._store, uuid, self._executor, self._indexer, self._prober)
            return found

    def collections(self) -> list[str]:
        """The collections' names, sorted."""
        return list(self._store_open().collections())

    def drop_collection(self, name: str, *, token: bytes | None = None) -> None:
        """Deletes a collection and its files. Raises NotFound.

        token: 1 to 64 bytes of the caller's choice; a call with a token that was seen in the last 24 hours changes nothing and
        returns what the first one returned.
        """
        self._writable().drop_collection(name, checked_token(token, f"drop_collection {name!r}"))

    def rename_collection(self, old: str, new: str, *, token: bytes | None = None) -> None:
        """Raises NotFound, AlreadyExists or InvalidInput. Open Collection objects go on working.

        token: 1 to 64 bytes of the caller's choice; a call with a token that was seen in the last 24 hours changes nothing and
        returns what the first one returned.
        """
        once = checked_token(token, f"rename_collection {old!r} to {new!r}")
        self._writable().rename_collection(old, checked_name(new), once)

    def add_field(self, collection: str, name: str, field: Field, *, token: bytes | None = None) -> None:
        """Adds a vector field to a collection; the points that are there lack it until they are written again.

        Raises NotFound, AlreadyExists or InvalidInput.
        token: 1 to 64 bytes of the caller's choice; a call with a token that was seen in the last 24 hours changes nothing and
        returns what the first one returned.
        """
        once = checked_token(token, f"add_field {name!r} to {collection!r}")
        declared = checked_field(name, field)

        def add(schema: dict[str, Any]) -> dict[str, Any]:
            if name in schema["fields"]:
                raise AlreadyExists(f"collection {collection!r} has a field {name!r}")
            return {**schema, "fields": {**schema["fields"], name: declared.to_json()}}

        store = self._writable()
        if once is not None and store.kept(once) is not None:  # the collection may have another name by now
            return
        self.collection(collection)
        uuid = store.uuid_of(collection)
        assert uuid is not None
        store.alter_schema(uuid, add, once)

    def verify(self, *, repair: bool = False, progress: Callable[[int, int], None] | None = None) -> Report:
        """Reads every byte of the database and compares it with its checksums, and every index with its rows.

        `report.damage` lists what is wrong: file, array, block, what is lost and what to do. repair: makes again what can
        be made again, and moves what is damaged to `quarantine/`; `ids` of each finding are then the points that are lost.
        progress: called with the bytes done, of all. Safe beside readers and writers.
        """
        return self._store_open().verify(None, progress, repair, index_problems)

    def vacuum(self, progress: Callable[[int, int], None] | None = None) -> Vacuumed:
        """Gives back the space of what was deleted or replaced; afterwards those payloads and vectors are in no file.

        Safe beside readers and writers, which wait for moments; needs free space for a copy of what it rewrites. progress:
        called with the bytes done, of all. Returns the bytes of the database before and after. Raises DiskFull, StorageError.
        """
        return self._writable().vacuum(None, progress)

    def backup(
        self,
        where: str | os.PathLike[str],
        earlier: str | os.PathLike[str] | None = None,
        *,
        link: bool = False,
        options: Mapping[str, Any] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Backup:
        """Copies the newest commit to an empty directory or a URL (`s3://…`, by fsspec), while the database is in use.

        earlier: a backup of the same database; files that it has are taken from there, by hard links in directories and by
        name elsewhere, so that only what is new is copied. link: hard links to the database's own segments, done at once, and
        no protection against a disk that fails. options: for fsspec. progress: called with the bytes done, of all.

        `vecdb.restore` is the way back. Raises AlreadyExists, NotFound, Corruption, InvalidInput, DiskFull, StorageError.
        """
        return self._store_open().backup(
            _location(where), None if earlier is None else _location(earlier), link=link, options=options, progress=progress
        )

    def info(self) -> Metrics:
        """Figures about the database's files since it was opened: amplification, log, flushes, merges, readers, and more.

        `info().flat()` has them by the names under which they are monitored, as "vecdb.storage.write_amplification". Those of a
        collection are in `Collection.info`.
        """
        return self._store_open().metrics()

    def flush(self) -> None:
        """Moves all rows that are only in memory and in the log into segments."""
        self._writable().flush()

    def pause_indexing(self) -> None:
        """Index builds stand still, to leave the machine to others. What has no index yet is searched exactly."""
        self._writable()
        assert self._indexer is not None
        self._indexer.pause()

    def resume_indexing(self) -> None:
        """Index builds go on."""
        self._writable()
        assert self._indexer is not None
        self._indexer.resume()

    def close(self) -> None:
        """Lets go of the files. Nothing is lost without it: every write was durable when its call returned."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        if self._indexer is not None:
            self._indexer.release()
        if self._prober is not None:
            self._prober.close()
        self._executor.close()
        for collection in self._open.values():
            collection.detach()
        self._store.release()

    def __enter__(self) -> Database:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<vecdb.Database {self._store.path}{' (closed)' if self._closed else ''}>"

    def _store_open(self) -> Store:
        if self._closed:
            raise Closed(f"{self._store.path} was closed; open it again")
        return self._store

    def _writable(self) -> Store:
        store = self._store_open()
        if self._read_only:
            from .errors import ReadOnly

            raise ReadOnly(f"{store.path} was opened with read_only=True; open it without to write")
        return store
