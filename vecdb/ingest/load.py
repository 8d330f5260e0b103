"""Files into a collection, as a Plan says, so that a kill at any moment loses nothing and doubles nothing.

A Run reads, embeds and writes at the same time, in threads that are one chunk ahead of each other, so memory is a few chunks
whatever the files hold. Each chunk is one commit, and how far its file is read is part of it: the checkpoint `ingest.` +
xxh3-128 of the file's URL, a JSON object

    identity, options    of the file, and of how it was read: another file of that name, or other options, are not continued
    row, offset          where to go on; first: the number that its row 0 has among those of all files
    points, skipped, replaced, rejects, done

Checkpoints are taken away when all files are in. A Run belongs to one thread.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import orjson
import xxhash

from ..errors import AlreadyExists, DuplicateId, InvalidFile, InvalidInput
from ..pipeline import Ahead
from .mapping import Chunk, Mapped, columns_of, settle
from .readers import START, Piece, Place, Pruning, Reader, Unread, open_reader
from .sources import Source

if TYPE_CHECKING:
    from ..api import Collection, Prepared
    from .plan import Plan

PREFIX = b"ingest."
_SHOWN = 300  # characters of a rejected row


@dataclass(frozen=True)
class Progress:
    """How far an ingest is. file: that is being read; files: of which `files_done` are in. bytes: read, of `total_bytes`, which
    is None where a file does not say its size. rows: read; points: written; skipped: rows that were refused.
    """

    file: str
    files_done: int
    files: int
    rows: int
    points: int
    skipped: int
    bytes: int
    total_bytes: int | None


@dataclass(frozen=True)
class Summary:
    """What an ingest has done. known: rows that an earlier run of it had read. replaced: points whose ids were there already,
    or came again. bare: points without any vector. missing: file -> payload columns that it lacks. rejects: the file that
    names the rows that were skipped.
    """

    collection: str
    files: int
    rows: int
    points: int
    skipped: int
    replaced: int
    known: int
    bare: int
    missing: dict[str, list[str]]
    rejects: str | None


@dataclass
class State:
    """Of a file; what its checkpoint holds."""

    source: Source
    place: Place = START
    first: int = 0
    points: int = 0
    skipped: int = 0
    replaced: int = 0
    rejects: int = 0  # bytes of the file of rejects
    bare: int = 0  # points without any vector
    done: bool = False
    known: int = 0  # rows that were read by an earlier run

    @property
    def token(self) -> bytes:
        return PREFIX + xxhash.xxh3_128_digest(self.source.url.encode())

    def to_json(self, options: str) -> bytes:
        return orjson.dumps({
            "url": self.source.url, "identity": dict(self.source.identity), "options": options,
            "row": self.place.row, "offset": self.place.offset, "first": self.first, "points": self.points,
            "skipped": self.skipped, "replaced": self.replaced, "rejects": self.rejects, "bare": self.bare, "done": self.done,
        })  # fmt: skip


@dataclass
class _Work:
    """A piece on its way, of a file in some state, and in the end what it is mapped to."""

    state: State
    piece: Piece
    mapped: Mapped
    last: bool = False
    chunk: Chunk = field(default_factory=lambda: Chunk((), None, {}, None))
    unread: Sequence[Unread] = ()
    prepared: Prepared | None = None  # None, too, where something is wrong with the rows

    def drop(self) -> None:
        """Lets go of what was prepared and not written."""
        if self.prepared is not None:
            self.prepared.release()


class Run:
    def __init__(
        self, plan: Plan, collection: Collection, progress: Callable[[Progress], None] | None, fingerprint: str
    ) -> None:
        """fingerprint: of the options by which the files are read, kept with the checkpoints."""
        self._plan, self._collection, self._progress, self._fingerprint = plan, collection, progress, fingerprint
        self._missing: dict[str, list[str]] = {}
        self._bytes = 0
        self._rejects = _Rejects(plan) if plan.how.on_error == "skip" else None

    def run(self) -> Summary:
        read = Ahead(self._read(), _Work.drop)
        chunks = Ahead((self._prepared(work) for work in read), _Work.drop, read)
        try:
            for work in chunks:
                try:
                    self._write(work)
                finally:
                    work.drop()
                if self._progress is not None:
                    self._progress(self._at(work.state))
        finally:
            chunks.close()
            if self._rejects is not None:
                self._rejects.close()
        states = self._plan.states
        self._collection.set_checkpoints({state.token: None for state in states})
        rejects = None if self._rejects is None or not any(state.skipped for state in states) else self._rejects.path
        return Summary(
            self._plan.collection, len(states), sum(state.place.row for state in states), sum(state.points for state in states),
            sum(state.skipped for state in states), sum(state.replaced for state in states),
            sum(state.known for state in states), sum(state.bare for state in states), self._missing, rejects,
        )  # fmt: skip

    def _at(self, now: State) -> Progress:
        states = self._plan.states
        return Progress(
            now.source.name, sum(state.done for state in states), len(states), sum(state.place.row for state in states),
            sum(state.points for state in states), sum(state.skipped for state in states), self._bytes, self._plan.total_bytes,
        )  # fmt: skip

    # -- reading: in a thread of its own ---------------------------------------------------------------

    def _read(self) -> Iterator[_Work]:
        plan, first = self._plan, self._plan.how.first_id or 0
        for state in plan.states:
            if state.done:
                first = state.first + state.place.row
                self._bytes += state.source.size or 0
                continue
            if not state.known:
                state.first = first
            reader = open_reader(state.source, plan.options)
            try:
                rows = yield from self._file(state, reader)
            finally:
                reader.close()
            first = state.first + rows

    def _file(self, state: State, reader: Reader) -> Generator[_Work, None, int]:
        """Returns how many rows the file has."""
        plan, place = self._plan, state.place
        mapped: Mapped | None = None
        if isinstance(reader, Pruning):
            reader.prune(plan.mapped.columns)
        pieces = reader.read(place)
        while (piece := next(pieces, None)) is not None:
            state.source.check_unchanged()
            if mapped is None:
                mapped = self._mapped(state.source, piece) if len(piece) else plan.mapped
            place = piece.after
            yield _Work(state, piece, mapped)
        state.source.check_unchanged()
        yield _Work(state, Piece((), (), place, 0), plan.mapped, last=True)
        return place.row

    def _mapped(self, source: Source, piece: Piece) -> Mapped:
        """The mapping of a file: that of the first one, or where it is of another format and so has other columns, its own."""
        plan, columns = self._plan, columns_of(piece)
        mapped = plan.mapped
        if source.format != plan.sources[0].format:
            mapped = settle(columns, plan.wanted, self._collection.info().fields, source.name, embeds=mapped.text is not None)
        missing = mapped.check(columns, source.name) or ([] if mapped.payload is not None else self._lacking(piece))
        if missing:
            self._missing[source.name] = missing
        return mapped

    def _lacking(self, piece: Piece) -> list[str]:
        """Columns of the first file that a later one, whose columns are declared, does not have."""
        if isinstance(piece.rows, Sequence):
            return []
        mapped = self._plan.mapped
        usual = set(mapped.columns(self._plan.columns)) - set(mapped.spread(self._plan.columns))
        return sorted(usual - set(piece.rows.schema.names) - {mapped.id, mapped.text})

    # -- preparing: in a thread of its own ---------------------------------------------------------------

    def _prepared(self, work: _Work) -> _Work:
        """Maps, embeds and checks the rows, and sets their vectors on their way to disk, while those before are committed."""
        piece, state = work.piece, work.state
        work.unread = piece.unread
        if len(piece):
            work.chunk = self._plan.split(work.mapped.apply(piece, state.first, state.source.name))
        if self._plan.mapped.text is not None and len(work.chunk):
            self._embed(work)
        if len(work.chunk) and not (work.unread and self._rejects is None):
            with suppress(InvalidInput):  # it comes again when it is written, and is dealt with there
                work.prepared = self._collection.prepare(work.chunk.ids, work.chunk.vectors, work.chunk.payloads)
        return work

    def _embed(self, work: _Work) -> None:
        sound, unread = self._with_texts(work.chunk)
        work.unread = [*work.unread, *unread]
        work.chunk = sound
        if len(sound):
            vectors, payloads = self._collection.embedding.of_points(
                sound.texts or [], sound.payloads, lambda v, p: self._collection.check(sound.ids, v, p)
            )
            work.chunk = Chunk(sound.numbers, sound.ids, vectors, payloads)

    def _with_texts(self, chunk: Chunk) -> tuple[Chunk, list[Unread]]:
        assert chunk.texts is not None
        blank = [at for at, text in enumerate(chunk.texts) if not isinstance(text, str) or not text.strip()]
        if not blank:
            return chunk, []
        column, without = self._plan.mapped.text, set(blank)
        unread = [Unread(chunk.numbers[at], f"a text is needed, and it is {chunk.texts[at]!r}", column) for at in blank]
        return chunk.take([at for at in range(len(chunk)) if at not in without]), unread

    # -- writing ---------------------------------------------------------------------------------------

    def _write(self, work: _Work) -> None:
        state = work.state
        if work.unread and self._rejects is None:  # the first row that is wrong is named, in whatever way it is
            earlier = [at for at, number in enumerate(work.chunk.numbers) if number < work.unread[0].row]
            if earlier:
                self._check(work.chunk.take(earlier), state)
        for each in work.unread:
            self._refuse(state, each.row, each.reason, each.column, each.text)
        chunk, replaced = work.chunk, 0
        skipped = len(work.unread)
        before = len(chunk)
        while True:
            after = replace(state, place=work.piece.after, done=work.last)
            after.points, after.skipped = state.points + len(chunk), state.skipped + skipped
            after.replaced, after.bare = state.replaced + replaced, state.bare + _bare(chunk)
            after.rejects = self._rejects.flushed() if self._rejects is not None else 0
            checkpoints = {state.token: after.to_json(self._fingerprint)} if state.source.can_be_resumed else {}
            try:
                if len(chunk):
                    prepared, work.prepared = work.prepared, None
                    prepared = prepared or self._collection.prepare(chunk.ids, chunk.vectors, chunk.payloads)
                    replaced_now = prepared.commit(insert=self._plan.how.insert, checkpoints=checkpoints)
                else:
                    replaced_now = 0
                    if checkpoints:
                        self._collection.set_checkpoints(checkpoints)
                break
            except DuplicateId as error:
                if self._plan.how.insert:
                    chunk, lost = self._without(chunk, state, error)
                    skipped += lost
                else:
                    latest = _last_of_each(chunk)
                    replaced += len(chunk) - len(latest)
                    chunk = latest
            except (InvalidInput, AlreadyExists) as error:
                chunk, lost = self._without(chunk, state, error)
                skipped += lost
            assert len(chunk) < before
            before = len(chunk)
        state.place, state.done = work.piece.after, work.last
        state.points, state.skipped, state.bare = after.points, after.skipped, after.bare
        state.replaced += replaced + replaced_now
        self._bytes += work.piece.bytes

    def _check(self, chunk: Chunk, state: State) -> None:
        """Raises what is wrong with the first row that would be refused."""
        try:
            self._collection.check(chunk.ids, chunk.vectors, chunk.payloads)
        except DuplicateId:
            return
        except InvalidInput as error:
            self._without(chunk, state, error)

    def _without(self, chunk: Chunk, state: State, error: Exception) -> tuple[Chunk, int]:
        """The chunk without the rows that are refused, and how many those were; or, unless they are skipped, raises."""
        bad: dict[int, Exception]
        if isinstance(error, AlreadyExists):
            there = self._collection.get(list(chunk.ids), with_vectors=False, with_payload=False)
            bad = {
                at: AlreadyExists(f"id {chunk.id_of(at)!r} is there already")
                for at, point in enumerate(there)
                if point is not None
            }
        else:
            bad = self._bad(chunk, list(range(len(chunk))))
        if not bad:
            raise error
        for at, why in sorted(bad.items()):
            reason = getattr(why, "reason", None) or str(why)
            column = self._column_of(getattr(why, "field", None))
            shown = None if chunk.ids is None else f"id {chunk.id_of(at)!r}"
            self._refuse(state, int(chunk.numbers[at]), reason, column, shown, why)
        return chunk.take([at for at in range(len(chunk)) if at not in bad]), len(bad)

    def _bad(self, chunk: Chunk, rows: list[int]) -> dict[int, Exception]:
        """The rows that are refused by themselves, or for an id that came before. Where rows are not skipped, one is enough."""
        found: dict[int, Exception] = {}
        seen: set[Any] = set()

        def look(some: list[int]) -> None:
            if found and self._plan.how.on_error == "stop":
                return
            part = chunk.take(some)
            try:
                self._collection.check(part.ids, part.vectors, part.payloads)
            except DuplicateId as error:
                if len(some) == 1:
                    found[some[0]] = error
                    return
            except InvalidInput as error:
                if len(some) == 1:
                    found[some[0]] = error
                    return
            else:
                return
            half = len(some) // 2
            look(some[:half])
            look(some[half:])

        look(rows)
        if self._plan.how.insert and chunk.ids is not None:
            for at in rows:
                if chunk.ids[at] in seen and at not in found:
                    found[at] = DuplicateId(f"id {chunk.id_of(at)!r} came before")
                seen.add(chunk.ids[at])
        if not found and chunk.ids is not None:  # right by themselves, and not together, or not in this collection
            kinds = {at: "str" if isinstance(chunk.ids[at], str) else "int" for at in rows}
            settled = self._collection.info().ids or kinds[rows[0]]
            found = {
                at: InvalidInput(f"its id is {chunk.id_of(at)!r}, and the collection's ids are {settled}")
                for at, kind in kinds.items()
                if kind != settled
            }
        return found

    def _column_of(self, field_name: str | None) -> str | None:
        """The column of a vector field or payload path."""
        if field_name is None:
            return None
        if field_name in self._plan.mapped.vectors:
            return self._plan.mapped.vectors[field_name]
        return {new: old for old, new in self._plan.mapped.rename.items()}.get(field_name, field_name)

    def _refuse(
        self, state: State, row: int, reason: str, column: str | None, text: str | None, cause: Exception | None = None
    ) -> None:
        if self._rejects is None:
            said = f"{reason}; say --on-error skip to leave such rows out"
            raise InvalidFile(said, file=state.source.name, row=row, column=column) from cause
        self._rejects.add(state.source.name, row, column, reason, text)


def _bare(chunk: Chunk) -> int:
    """Rows that have a null in the place of every vector."""
    if not chunk.vectors or any(not isinstance(values, list) for values in chunk.vectors.values()):
        return 0
    return sum(all(vector is None for vector in row) for row in zip(*chunk.vectors.values(), strict=True))


def _last_of_each(chunk: Chunk) -> Chunk:
    """Of rows with one id, the last."""
    last = {key: at for at, key in enumerate(chunk.ids)}
    return chunk.take(sorted(last.values()))


class _Rejects:
    """The file of rows that were refused: JSON lines of file, row, column, reason and the beginning of the row.

    What an earlier run wrote after its last commit is cut off, for those rows come again.
    """

    def __init__(self, plan: Plan) -> None:
        self.path = plan.how.rejects or f"{plan.collection}.rejects.jsonl"
        kept = max((state.rejects for state in plan.states), default=0)
        self._file: Any = None
        self._kept = kept

    def add(self, file: str, row: int, column: str | None, reason: str, text: str | None) -> None:
        if self._file is None:
            self._file = open(self.path, "r+b" if self._kept and os.path.exists(self.path) else "wb")  # noqa: SIM115
            self._file.truncate(self._kept)
            self._file.seek(0, os.SEEK_END)
        line = {"file": file, "row": row, "column": column, "reason": reason, "text": None if text is None else text[:_SHOWN]}
        self._file.write(orjson.dumps(line) + b"\n")

    def flushed(self) -> int:
        """What is in the file is not lost if this process ends. Returns its length."""
        if self._file is None:
            return self._kept
        self._file.flush()
        return int(self._file.tell())

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
