"""Files into a collection: planned, shown, and then run so that a kill at any moment loses nothing and doubles nothing.

A Plan says what was understood of the files before anything is written. `run` reads, embeds and writes at the same time, in
three threads with room for one chunk between them, so memory is a few chunks whatever the files hold. Each chunk is one commit,
and how far its file is read is part of it: the checkpoint `ingest.` + xxh3-128 of the file's URL, a JSON object

    identity, options    of the file, and of how it was read: another file of that name, or other options, are not continued
    row, offset          where to go on; first: the number that its row 0 has among those of all files
    points, skipped, replaced, rejects, done

Checkpoints are taken away when all files are in. A Plan belongs to one thread.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import orjson
import xxhash
from vecdb_storage.batch import LEVEL0_BYTES

from ..embed import BUILT_IN
from ..errors import AlreadyExists, DuplicateId, InvalidFile, InvalidInput, NotFound
from ..pipeline import Ahead
from ..schema import AUTO, Dense, Dtype, Field, Metric, Sparse, checked_metric
from .mapping import ROW, Chunk, Column, Mapped, Wanted, columns_of, settle
from .readers import START, Limits, Options, Piece, Place, Pruning, Reader, Unread, open_reader
from .sources import Source, find
from .split import split

if TYPE_CHECKING:
    from ..api import Collection, Database, Prepared
    from ..embed import Encoder

_PREFIX = b"ingest."
_SMALLEST_BATCH, _LARGEST_BATCH = 256 << 10, 16 << 20  # bytes of a commit
_GROWING_BATCH = 3 << 20  # whose vectors are written while the rest is prepared; two of them are lost by a kill
_GROWING_DIM = 256  # numbers of a vector from which that is so: of shorter ones the rows themselves, in the memtable, cost more
_BATCHES = 64  # into which files are divided, if that leaves a commit between these
_SEGMENT = LEVEL0_BYTES + (256 << 10)  # a commit of so many bytes becomes a segment at once; of a bit less, it costs more
_HEAD = 100  # rows that guesses are made of
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


@dataclass(frozen=True)
class How:
    """How files are ingested, beside the mapping. on_error: "stop" at a row that is refused, or "skip" it.

    rejects: the file that names skipped rows. insert: an id that exists is an error, and not replaced. batch_bytes: of a
    commit, about; None: by the size of the files. first_id: of ids that are row numbers. chunk, overlap: characters of the
    parts that texts are split into. restart: what an earlier run did not finish is read from the beginning.
    """

    on_error: Literal["stop", "skip"] = "stop"
    rejects: str | None = None
    insert: bool = False
    batch_bytes: int | None = None
    first_id: int | None = None
    chunk: int | None = None
    overlap: int = 0
    restart: bool = False


@dataclass
class _State:
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
        return _PREFIX + xxhash.xxh3_128_digest(self.source.url.encode())

    def to_json(self, options: str) -> bytes:
        return orjson.dumps({
            "url": self.source.url, "identity": dict(self.source.identity), "options": options,
            "row": self.place.row, "offset": self.place.offset, "first": self.first, "points": self.points,
            "skipped": self.skipped, "replaced": self.replaced, "rejects": self.rejects, "bare": self.bare, "done": self.done,
        })  # fmt: skip


@dataclass
class _Work:
    """A piece on its way: the state of its file after it, and its rows."""

    state: _State
    chunk: Chunk
    unread: Sequence[Unread]
    after: Place
    bytes: int
    last: bool = False
    prepared: Prepared | None = None  # None, too, where something is wrong with the rows

    def drop(self) -> None:
        """Lets go of what was prepared and not written."""
        if self.prepared is not None:
            self.prepared.release()


@dataclass
class Plan:
    """What an ingest will do. Made by `plan`. created: fields of a collection to be made. columns: of the first file."""

    database: Database
    collection: str
    sources: list[Source]
    columns: dict[str, Column]
    mapped: Mapped
    wanted: Wanted
    created: dict[str, Field] | None
    embed: str | Encoder | None
    how: How
    options: Options
    head: Piece
    states: list[_State] = field(default_factory=list)

    @property
    def known_rows(self) -> int:
        """Rows that an earlier run, which was cut short, has read."""
        return sum(state.known for state in self.states)

    @property
    def total_bytes(self) -> int | None:
        """None where a file does not say its size."""
        sizes = [source.size for source in self.sources if source.size is not None]
        return sum(sizes) if len(sizes) == len(self.sources) else None

    def first_points(self, count: int = 3) -> list[dict[str, Any]]:
        """The first rows as they would be stored."""
        chunk = self._split(self.mapped.apply(self.head, self.how.first_id or 0, self.sources[0].name))
        some = chunk.take(range(min(count, len(chunk))))
        points = []
        for at in range(len(some)):
            point: dict[str, Any] = {"id": some.id_of(at) if some.ids is not None else "(a new ULID)"}
            if some.texts is not None:
                point["text"] = some.texts[at]
            point |= {name: values[at] for name, values in some.vectors.items()}
            points.append({**point, "payload": some.payloads[at] if some.payloads is not None else {}})
        return points

    # -- running -----------------------------------------------------------------------------------------

    def run(self, progress: Callable[[Progress], None] | None = None) -> Summary:
        """Reads all files, and returns when what they hold is durable. progress: called after each commit.

        Raises InvalidFile at a row that is refused, unless those are skipped; NotFound, AlreadyExists, StorageError, DiskFull.
        What was committed before stays, and the next run goes on from there.
        """
        if self.created is None:
            collection = self.database.collection(self.collection, **self._encoder())
        else:
            collection = self.database.create_collection(self.collection, self.created or None, embed=self.embed)
            self.created = None
        return _Run(self, collection, progress).run()

    def _encoder(self) -> dict[str, Any]:
        return {} if self.embed is None or isinstance(self.embed, str) else {"embed": self.embed}

    def _split(self, chunk: Chunk) -> Chunk:
        """Each text in parts that are points of their own: "id#0", "id#1", …, whose payload says of which row they are."""
        if self.how.chunk is None or chunk.texts is None:
            return chunk
        numbers, ids, payloads, texts = [], [], [], []
        rows = chunk.payload_rows() or [{}] * len(chunk)
        for at, text in enumerate(chunk.texts):
            parts = split(text, self.how.chunk, self.how.overlap) if isinstance(text, str) else [text]
            for part_number, part in enumerate(parts or [text]):
                numbers.append(chunk.numbers[at])
                texts.append(part)
                if chunk.ids is not None:
                    ids.append(f"{chunk.id_of(at)}#{part_number}")
                payloads.append(
                    {**(rows[at] or {}), "part": part_number, **({} if chunk.ids is None else {"of": chunk.id_of(at)})}
                )
        return Chunk(numbers, ids if chunk.ids is not None else None, {}, payloads, texts)


def plan_of(database: Database, collection: str, files: Any, **said: Any) -> Plan:
    """A plan of what is said flatly, as on a command line: each name belongs to Wanted, How, Options, Limits or to `plan`."""
    parts: dict[type[Any], dict[str, Any]] = {Wanted: {}, How: {}, Options: {}, Limits: {}}
    rest = {}
    for name, value in said.items():
        owner = next((part for part in parts if name in part.__dataclass_fields__.keys() - {"limits", "piece"}), None)
        if owner is not None:
            parts[owner][name] = value
        elif name in ("format", "metric", "dtype", "index", "embed", "create", "storage_options"):
            rest[name] = value
        else:
            known = sorted({each for part in parts for each in part.__dataclass_fields__} - {"limits", "piece"})
            raise InvalidInput(f"ingest has no {name!r}; it has {', '.join(known)}")
    options = Options(**parts[Options], limits=Limits(**parts[Limits]))
    return plan(database, collection, files, wanted=Wanted(**parts[Wanted]), how=How(**parts[How]), options=options, **rest)


def plan(
    database: Database,
    collection: str,
    files: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    *,
    format: str | None = None,
    wanted: Wanted | None = None,
    how: How | None = None,
    options: Options | None = None,
    metric: Metric | None = None,
    dtype: Dtype | None = None,
    index: Any = AUTO,
    embed: str | Encoder | None = None,
    create: bool = True,
    storage_options: Mapping[str, Any] | None = None,
) -> Plan:
    """Looks at the files and at the collection, and writes nothing.

    files: paths, folders, globs, URLs (by fsspec, with storage_options), or "-". format: where names do not say it. metric,
    dtype, index, embed: of the collection that is created where there is none, unless `create` is false. Raises NotFound,
    InvalidFile, InvalidInput, Unsupported, EncoderMismatch.
    """
    wanted, how = wanted or Wanted(), how or How()
    sources = find(files, format, storage_options)
    options = options or Options()
    options = replace(options, limits=replace(options.limits, piece=how.batch_bytes or _batch_of(sources)))
    there = collection in database
    if not there and not create:
        raise NotFound(f"there is no collection {collection!r}, and it is not to be created")
    into = database.collection(collection) if there else None
    info = into.info() if into is not None else None
    fields = info.fields if info is not None else None
    if embed is None and info is not None and info.encoder is not None and wanted.vectors is None:
        embed = info.encoder if wanted.text is not None or info.encoder in BUILT_IN else None
    reader = open_reader(sources[0], options)
    try:
        head, columns, said = _head(sources[0], reader)
    finally:
        reader.close()
    mapped = settle(columns, wanted, fields, sources[0].name, embeds=embed is not None)
    if how.batch_bytes is None and _grows(mapped, fields):
        options = replace(options, limits=replace(options.limits, piece=min(options.limits.piece, _GROWING_BATCH)))
    if how.chunk is not None and mapped.text is None:
        raise InvalidInput("texts are split where they are embedded: say --embed, too")
    created: dict[str, Field] | None = None
    if into is None:
        default: Metric = checked_metric(said) or "cosine"
        created = {
            name: Sparse(index) if dim is None else Dense(dim, metric or default, dtype or mapped.dtypes[name], index)  # type: ignore[arg-type]
            for name, dim in mapped.dims.items()
        }
        if embed is not None:
            created = {}
    made = Plan(database, collection, sources, columns, mapped, wanted, created, embed, how, options, head)
    made.states = _resumed(made, into)
    if (
        into is not None
        and mapped.id == ROW
        and how.first_id is None
        and into.count()
        and not any(state.known for state in made.states)
    ):
        raise InvalidInput(
            f"{sources[0].name} has no column of ids, and {collection!r} has {into.count():,} points, which row numbers from 0 "
            f"on would replace: say --id COLUMN, --first-id {into.count()} or so, or --id :ulid"
        )
    return made


def _grows(mapped: Mapped, fields: Mapping[str, Field] | None) -> bool:
    """Whether growing segments take the vectors, which are those of the only field, and dense, as fast as larger commits do."""
    others = fields is not None and len(fields) > 1
    dims = list(mapped.dims.values())
    return not others and len(dims) == 1 and dims[0] is not None and dims[0] >= _GROWING_DIM


def _batch_of(sources: Sequence[Source]) -> int:
    """Bytes of a commit: a kill costs what is on its way, which is two of them, so of few bytes they are small."""
    share = sum(source.size or _LARGEST_BATCH * _BATCHES for source in sources) // _BATCHES
    if share > _SEGMENT // 3:
        share = max(share, _SEGMENT)
    return max(_SMALLEST_BATCH, min(_LARGEST_BATCH, share))


def _head(source: Source, reader: Reader) -> tuple[Piece, dict[str, Column], str | None]:
    """The first rows, the columns, and the metric that the file is made for, if it says so."""
    refused: Unread | None = None
    for piece in reader.read(START, _HEAD):
        refused = refused or next(iter(piece.unread), None)
        if len(piece):
            return piece, columns_of(piece), getattr(reader, "metric", None)
    if refused is not None:
        raise InvalidFile(f"{refused.reason}; if it is no {source.format}, say --format", file=source.name, row=refused.row)
    raise InvalidFile("it has no rows", file=source.name)


def _options_of(plan: Plan) -> str:
    """A fingerprint of all that decides what a row becomes."""
    mapped = {key: sorted(value) if isinstance(value, frozenset) else value for key, value in asdict(plan.mapped).items()}
    said = [
        mapped,
        plan.how.chunk,
        plan.how.overlap,
        plan.how.first_id,
        plan.options.dataset,
        dict(plan.options.types),
        plan.options.ids,
    ]
    return xxhash.xxh3_64_hexdigest(orjson.dumps(said, option=orjson.OPT_SORT_KEYS))


def _resumed(plan: Plan, into: Collection | None) -> list[_State]:
    """The states of all files, as an earlier run has left them."""
    states = [_State(source) for source in plan.sources]
    known = {} if into is None or plan.how.restart else into.checkpoints(_PREFIX)
    fingerprint = _options_of(plan)
    for state in states:
        state.first = plan.how.first_id or 0
        if state.token not in known or not state.source.can_be_resumed:
            continue
        kept = orjson.loads(known[state.token])
        if kept["identity"] != dict(state.source.identity):
            raise InvalidFile(
                f"it was changed since {kept['row']:,} rows of it were ingested; say --restart to read it from its beginning",
                file=state.source.name,
            )
        if kept["options"] != fingerprint:
            raise InvalidInput(
                f"{state.source.name}: {kept['row']:,} rows of it were ingested with other options; say the same again, or "
                f"--restart to read it from its beginning"
            )
        state.place, state.first = Place(kept["row"], kept["offset"]), kept["first"]
        state.points, state.skipped, state.replaced = kept["points"], kept["skipped"], kept["replaced"]
        state.rejects, state.bare = kept["rejects"], kept["bare"]
        state.done, state.known = kept["done"], kept["row"]
    return states


class _Run:
    def __init__(self, plan: Plan, collection: Collection, progress: Callable[[Progress], None] | None) -> None:
        self._plan, self._collection, self._progress = plan, collection, progress
        self._fingerprint = _options_of(plan)
        self._missing: dict[str, list[str]] = {}
        self._bytes = 0
        self._rejects = _Rejects(plan) if plan.how.on_error == "skip" else None
        # Small chunks are not prepared ahead: their vectors go to a growing segment, which a flush takes as it is only where
        # nothing is on its way.
        self._ahead = plan.options.limits.piece >= LEVEL0_BYTES

    def run(self) -> Summary:
        chunks = read = Ahead(self._read(), _Work.drop)
        embeds = self._plan.mapped.text is not None
        if embeds or self._ahead:
            chunks = Ahead((self._prepared(self._embedded(work) if embeds else work) for work in read), _Work.drop, read)
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

    def _at(self, now: _State) -> Progress:
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

    def _file(self, state: _State, reader: Reader) -> Generator[_Work, None, int]:
        """Returns how many rows the file has."""
        plan, name, place = self._plan, state.source.name, state.place
        mapped: Mapped | None = None
        if isinstance(reader, Pruning):
            reader.prune(plan.mapped.columns)
        pieces = reader.read(place)
        while (piece := next(pieces, None)) is not None:
            state.source.check_unchanged()
            if mapped is None:
                mapped = self._mapped(state.source, piece) if len(piece) else plan.mapped
            chunk = plan._split(mapped.apply(piece, state.first, name))
            place = piece.after
            yield _Work(state, chunk, piece.unread, place, piece.bytes)
        state.source.check_unchanged()
        yield _Work(state, Chunk((), None, {}, None), (), place, 0, last=True)
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

    # -- embedding: in a thread of its own ---------------------------------------------------------------

    def _embedded(self, work: _Work) -> _Work:
        if not len(work.chunk):
            return work
        sound, unread = self._with_texts(work.chunk)
        work.unread = [*work.unread, *unread]
        work.chunk = sound
        if len(sound):
            vectors, payloads = self._collection.embedding.of_points(
                sound.texts or [], sound.payloads, lambda v, p: self._collection.check(sound.ids, v, p)
            )
            work.chunk = Chunk(sound.numbers, sound.ids, vectors, payloads)
        return work

    def _with_texts(self, chunk: Chunk) -> tuple[Chunk, list[Unread]]:
        assert chunk.texts is not None
        blank = [at for at, text in enumerate(chunk.texts) if not isinstance(text, str) or not text.strip()]
        if not blank:
            return chunk, []
        column, without = self._plan.mapped.text, set(blank)
        unread = [Unread(chunk.numbers[at], f"a text is needed, and it is {chunk.texts[at]!r}", column) for at in blank]
        return chunk.take([at for at in range(len(chunk)) if at not in without]), unread

    def _prepared(self, work: _Work) -> _Work:
        """Checks the rows and sets their vectors on their way to disk, while the chunk before is committed."""
        if self._ahead and len(work.chunk) and not (work.unread and self._rejects is None):
            with suppress(InvalidInput):  # it comes again when it is written, and is dealt with there
                work.prepared = self._collection.prepare(work.chunk.ids, work.chunk.vectors, work.chunk.payloads)
        return work

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
            after = replace(state, place=work.after, done=work.last)
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
        state.place, state.done = work.after, work.last
        state.points, state.skipped, state.bare = after.points, after.skipped, after.bare
        state.replaced += replaced + replaced_now
        self._bytes += work.bytes

    def _check(self, chunk: Chunk, state: _State) -> None:
        """Raises what is wrong with the first row that would be refused."""
        try:
            self._collection.check(chunk.ids, chunk.vectors, chunk.payloads)
        except DuplicateId:
            return
        except InvalidInput as error:
            self._without(chunk, state, error)

    def _without(self, chunk: Chunk, state: _State, error: Exception) -> tuple[Chunk, int]:
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
        self, state: _State, row: int, reason: str, column: str | None, text: str | None, cause: Exception | None = None
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
