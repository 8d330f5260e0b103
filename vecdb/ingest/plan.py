"""What an ingest will do, settled before anything is written: its files, what their columns are, and where a run that was cut
short goes on.

`plan_of(…).run()` is the whole of it; `load` is the run. A Plan belongs to one thread.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import orjson
import xxhash
from vecdb_storage.batch import LEVEL0_BYTES

from ..embed import BUILT_IN
from ..errors import InvalidFile, InvalidInput, NotFound, VecdbError
from ..schema import AUTO, Dense, Dtype, Field, Metric, Sparse, checked_metric
from .load import PREFIX, Progress, Run, State, Summary
from .mapping import ROW, Chunk, Column, Mapped, Wanted, columns_of, settle
from .readers import START, Limits, Options, Piece, Place, Reader, Unread, open_reader
from .sources import Source, find
from .split import split

if TYPE_CHECKING:
    from ..api import Collection, Database
    from ..embed import Encoder

_SMALLEST_BATCH, _LARGEST_BATCH = 256 << 10, 16 << 20  # bytes of a commit
_GROWING_BATCH = 3 << 20  # whose vectors are written while those before are committed; three of them are lost by a kill
_GROWING_DIM = 256  # numbers of a vector from which that is so: of shorter ones the rows themselves, in the memtable, cost more
_BATCHES = 64  # into which files are divided, if that leaves a commit between these
_SEGMENT = LEVEL0_BYTES + (256 << 10)  # a commit of so many bytes becomes a segment at once; of a bit less, it costs more
_HEAD = 100  # rows that guesses are made of


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
    states: list[State] = field(default_factory=list)

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
        chunk = self._first_chunk()
        some = chunk.take(range(min(count, len(chunk))))
        points = []
        for at in range(len(some)):
            point: dict[str, Any] = {"id": some.id_of(at) if some.ids is not None else "(a new ULID)"}
            if some.texts is not None:
                point["text"] = some.texts[at]
            point |= {name: values[at] for name, values in some.vectors.items()}
            points.append({**point, "payload": some.payloads[at] if some.payloads is not None else {}})
        return points

    def _first_chunk(self) -> Chunk:
        return self.split(self.mapped.apply(self.head, self.how.first_id or 0, self.sources[0].name))

    def first_known(self) -> tuple[int, int]:
        """Of how many rows at the beginning the ids were looked up, and how many of these are in the collection already."""
        if self.created is not None:
            return 0, 0
        chunk = self._first_chunk()
        if chunk.ids is None:
            return 0, 0
        collection, ids = self.database.collection(self.collection), list(chunk.ids)
        try:
            there = collection.get(ids, with_vectors=False, with_payload=False)
        except InvalidInput:  # some are no ids of this collection, which is said when they are written
            return 0, 0
        return len(there), sum(point is not None for point in there)

    # -- running -----------------------------------------------------------------------------------------

    def run(self, progress: Callable[[Progress], None] | None = None) -> Summary:
        """Reads all files, and returns when what they hold is durable. progress: called after each commit.

        Raises InvalidFile at a row that is refused, unless those are skipped; NotFound, AlreadyExists, StorageError, DiskFull.
        What was committed before stays, and the next run goes on from there. A collection that was made for it and of which
        nothing came goes again, for its fields are a guess from rows that were refused.
        """
        created = self.created
        if created is None:
            collection = self.database.collection(self.collection, **self._encoder())
        else:
            collection = self.database.create_collection(self.collection, created or None, embed=self.embed)
            self.created = None
        try:
            return Run(self, collection, progress, _options_of(self)).run()
        except BaseException:
            if created is not None and not any(state.place.row for state in self.states):
                with suppress(VecdbError):  # why the run failed is what is told
                    if not collection.count():  # somebody else may write to it by now
                        self.database.drop_collection(self.collection)
                        self.created = created
            raise

    def _encoder(self) -> dict[str, Any]:
        return {} if self.embed is None or isinstance(self.embed, str) else {"embed": self.embed}

    def split(self, chunk: Chunk) -> Chunk:
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
        plan.options.delimiter,
    ]
    return xxhash.xxh3_64_hexdigest(orjson.dumps(said, option=orjson.OPT_SORT_KEYS))


def _resumed(plan: Plan, into: Collection | None) -> list[State]:
    """The states of all files, as an earlier run has left them."""
    states = [State(source) for source in plan.sources]
    known = {} if into is None or plan.how.restart else into.checkpoints(PREFIX)
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
