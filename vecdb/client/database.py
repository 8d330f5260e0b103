"""A database on a server, as coroutines. `vecdb.client.blocking` has the same without."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import AlreadyExists, Unsupported, VecdbError
from ..schema import Field, checked_field, checked_name, field_from_json, fields_of
from ..wire import convert, messages
from . import upkeep
from .channel import Channel
from .collection import AsyncCollection, new_token

if TYPE_CHECKING:
    from vecdb_storage.backup import Backup
    from vecdb_storage.metrics import Metrics
    from vecdb_storage.vacuum import Vacuumed
    from vecdb_storage.verify import Report

    from ..embed import Encoder
    from ..ingest.load import Progress as Ingested
    from ..ingest.load import Summary
    from .blocking import RemoteDatabase

T = TypeVar("T")


class AsyncDatabase:
    """Use `vecdb.aio.connect`. An async context manager: leaving the block closes the connection, and not the database."""

    def __init__(self, channel: Channel, hello: Any) -> None:
        """hello: what the server said of itself."""
        self._channel, self._hello = channel, hello

    @staticmethod
    async def over(channel: Channel) -> AsyncDatabase:
        """Raises Unavailable, Unauthenticated."""
        try:
            return AsyncDatabase(channel, await channel.call("Admin/Hello", messages.HelloRequest()))
        except BaseException:
            await channel.close()
            raise

    async def create_collection(
        self,
        name: str,
        schema: Field | Mapping[str, Field] | None = None,
        *,
        embed: str | Encoder | None = None,
        token: bytes | None = None,
    ) -> AsyncCollection:
        """As `vecdb.Database.create_collection`. An encoder object embeds in this process; the server keeps its name."""
        from ..errors import InvalidInput

        checked_name(name)
        request = messages.CreateRequest(name=name, token=token or new_token())
        if embed is not None:
            from ..embed import declare, identity_of

            declared = declare(schema, embed)
            encoder, told = identity_of(embed), declared["embed"]
            request.encoder.name, request.encoder.field = encoder.name, told["field"]
            request.encoder.fingerprint, request.encoder.dim = told["fingerprint"] or "", encoder.dim or 0
            request.encoder.sparse = encoder.sparse
            fields = {each: field_from_json(field) for each, field in declared["fields"].items()}
        else:
            if schema is None:
                raise InvalidInput("say what the vectors are: create_collection(name, Dense(384)), or give embed=")
            fields = fields_of(schema)
        request.fields.extend([convert.to_field(each, field) for each, field in fields.items()])
        described = await self._channel.call("Collections/Create", request)
        return self._opened(described, embed)

    async def collection(self, name: str, *, embed: Encoder | None = None) -> AsyncCollection:
        """As `vecdb.Database.collection`."""
        request = messages.GetCollectionRequest(target=messages.Target(collection=checked_name(name)))
        return self._opened(await self._channel.call("Collections/Get", request), embed)

    def _opened(self, described: Any, embed: Any) -> AsyncCollection:
        made = AsyncCollection(self._channel, described, self._hello.largest_message)
        if embed is not None:
            made.embedding.adopt(embed, described.encoder if described.HasField("encoder") else None)
        return made

    async def collections(self) -> list[str]:
        """The names of those that the key may see, sorted."""
        return list((await self._channel.call("Collections/List", messages.ListRequest())).names)

    async def has(self, name: object) -> bool:
        """What `name in db` is elsewhere."""
        return isinstance(name, str) and name in await self.collections()

    async def drop_collection(self, name: str, *, token: bytes | None = None) -> None:
        """As `vecdb.Database.drop_collection`."""
        request = messages.DropRequest(name=name, token=token or new_token())
        await self._channel.call("Collections/Drop", request)

    async def rename_collection(self, old: str, new: str, *, token: bytes | None = None) -> None:
        """As `vecdb.Database.rename_collection`."""
        request = messages.RenameRequest(old=old, new=checked_name(new), token=token or new_token())
        await self._channel.call("Collections/Rename", request)

    async def add_field(self, collection: str, name: str, field: Field, *, token: bytes | None = None) -> None:
        """As `vecdb.Database.add_field`."""
        made = convert.to_field(name, checked_field(name, field))
        request = messages.AddFieldRequest(collection=collection, field=made, token=token or new_token())
        await self._channel.call("Collections/AddField", request)

    async def ingest(
        self,
        collection: str,
        files: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
        *,
        progress: Callable[[Ingested], None] | None = None,
        **how: Any,
    ) -> Summary:
        """As `vecdb.Database.ingest`: files of this machine, read in threads beside the loop, over a connection of their own.

        progress is called in such a thread.
        """
        return await asyncio.to_thread(lambda: self._beside(lambda db: db.ingest(collection, files, progress=progress, **how)))

    async def import_hnswlib(self, name: str, path: str | os.PathLike[str], **how: Any) -> AsyncCollection:
        """As `vecdb.Database.import_hnswlib`: a file of this machine, read in a thread beside the loop."""
        await asyncio.to_thread(lambda: self._beside(lambda db: db.import_hnswlib(name, path, **how)))
        return await self.collection(name)

    def _beside(self, work: Callable[[RemoteDatabase], T]) -> T:
        """What blocks, with a blocking client."""
        from .blocking import RemoteDatabase
        from .channel import Blocking, run

        with RemoteDatabase(run(AsyncDatabase.over(Blocking(self._channel.address)))) as db:
            return work(db)

    async def verify(self, *, repair: bool = False, progress: Callable[[int, int], None] | None = None) -> Report:
        """As `vecdb.Database.verify`."""
        return await upkeep.verify(self._channel, None, repair, progress)

    async def vacuum(self, progress: Callable[[int, int], None] | None = None) -> Vacuumed:
        """As `vecdb.Database.vacuum`."""
        return await upkeep.vacuum(self._channel, None, progress)

    async def backup(
        self,
        where: str | os.PathLike[str],
        earlier: str | os.PathLike[str] | None = None,
        *,
        link: bool = False,
        options: Mapping[str, Any] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Backup:
        """A backup in an empty directory of this machine, of files that the server sends. `vecdb.restore` is the way back.

        Raises AlreadyExists; Unsupported for `earlier`, `link`, `options` and URLs, which only the embedded API has.
        """
        from vecdb_storage.backup import Backup

        if earlier is not None or link or options is not None or "://" in os.fspath(where):
            raise Unsupported("over the wire a backup goes whole into a directory of this machine")
        folder = Path(where)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise AlreadyExists(f"{folder} is not empty; a backup goes into a directory of its own")
        folder.mkdir(parents=True, exist_ok=True)
        files, size, transaction = 0, 0, None
        path, file = "", None
        try:
            async for reply in self._channel.stream("Admin/Backup", messages.BackupRequest()):
                if reply.HasField("transaction"):
                    transaction = reply.transaction
                    continue
                if file is None:
                    path = upkeep.safe_name(reply.path)
                    (folder / path).parent.mkdir(parents=True, exist_ok=True)
                    file = open(folder / path, "xb")  # noqa: SIM115
                    files += 1
                if reply.path != path:
                    raise VecdbError(f"the server sends {reply.path!r} amid {path!r}")
                file.write(reply.data)
                size += len(reply.data)
                if progress is not None:
                    progress(reply.progress.done, reply.progress.total)
                if reply.last:
                    file.flush()
                    os.fsync(file.fileno())
                    file.close()
                    file = None
        finally:
            if file is not None:
                file.close()
        if transaction is None:
            raise VecdbError("the backup ended early and is not whole; make it again")
        return Backup(os.fspath(where), transaction, files, size, size)

    async def info(self) -> Metrics:
        """As `vecdb.Database.info`."""
        from vecdb_storage.metrics import Metrics

        found: Metrics = convert.from_figures(await self._channel.call("Admin/Stats", messages.StatsRequest()), Metrics)
        return found

    async def flush(self) -> None:
        """As `vecdb.Database.flush`."""
        await self._channel.call("Admin/FlushAll", messages.FlushAllRequest(), again=True)

    async def pause_indexing(self) -> None:
        """As `vecdb.Database.pause_indexing`."""
        await self._channel.call("Admin/PauseIndexing", messages.PauseIndexingRequest(), again=True)

    async def resume_indexing(self) -> None:
        """As `vecdb.Database.resume_indexing`."""
        await self._channel.call("Admin/ResumeIndexing", messages.ResumeIndexingRequest(), again=True)

    async def close(self) -> None:
        """Closes the connection."""
        await self._channel.close()

    async def __aenter__(self) -> AsyncDatabase:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<vecdb.Database at {self._channel.address.target}{' (closed)' if self._channel.closed else ''}>"
