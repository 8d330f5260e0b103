"""Typed columns from payloads, which are validated on the way; there is no other place that does.

    prepare(payloads)      what a writing call needs: JSON, and columns or the values that a flush will make them of
    prepare_by_key(values) the same of payloads whose values come key by key
    build(payloads)        the walk over each payload, for any shape
    from_raw(parts, n)     columns of values that were kept

Pure functions, safe in any thread. What columns are: `columns`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain, repeat
from operator import itemgetter
from typing import Any

import numpy as np
import orjson

from .columns import (
    ARRAY,
    BOOL,
    FLOAT,
    INT,
    MAX_PATHS,
    NARROW,
    NO_TIME,
    NULL,
    OBJECT,
    STRING,
    Array,
    Columns,
    widen,
)  # fmt: skip
from .errors import InvalidPayload
from .payloads import ABSENT, OPTIONS, PLAIN, Payload, default, encode, join_path, micros_of, parse_all, plain
from .strings import Texts

MAX_PAYLOAD_BYTES = 1 << 20
MAX_DEPTH = 64

_WIDE = 128  # mean characters of a text from which, mostly distinct, it has no column
_MANY = 8192  # strings from which NumPy sorts them, if they are narrow
_FEW = 8  # payloads that are validated one by one, which is faster for them
_KINDS = dict(zip(PLAIN, (NULL, BOOL, INT, FLOAT, STRING, ARRAY, ARRAY, OBJECT), strict=True))
_ARRAYS: dict[type, Any] = {int: np.int64, float: np.float64, bool: np.uint8}
_STORED = {"i": ("ints", INT), "f": ("floats", FLOAT), "u": ("bools", BOOL)}
_NEWLINE = orjson.Fragment(b"\n")
_DIGITS = bytes.maketrans(b"123456789", b"000000000")

Raw = Mapping[str, Sequence[Any] | Array]  # key -> the values of all rows, of one kind: an array, or a list of long texts


@dataclass(frozen=True)
class Prepared:
    """Checked payloads as JSON, and their typed columns with the description, unless they go to the log.

    raw: then, for ordinary payloads, the values by key, of which a flush makes columns without parsing the JSON again.
    """

    json: Sequence[bytes]
    columns: Columns | None
    raw: Raw | None = None


def prepare(payloads: Sequence[Payload | None], *, columns: bool = True) -> Prepared:
    """Validates, encodes and, unless `columns` is false, columns payloads in one walk.

    Raises InvalidPayload with the row and the path.
    """
    built = None
    if len(payloads) > _FEW and (flat := _flat(payloads)) is not None and (done := _finished(flat, columns)) is not None:
        return done
    if len(payloads) > _FEW:
        built = build(payloads, keep=columns)
    else:
        for row, payload in enumerate(payloads):
            _check_object(_as_object(payload, row) or {}, row, ())
    try:
        json = _encoded(payloads)
    except (TypeError, ValueError) as error:
        raise _why_not_json(payloads) or InvalidPayload(f"not JSON: {error}") from None
    if _longest(json) > MAX_PAYLOAD_BYTES:
        row = next(row for row, text in enumerate(json) if len(text) > MAX_PAYLOAD_BYTES)
        raise InvalidPayload(
            f"its JSON has {len(json[row]):,} bytes, {MAX_PAYLOAD_BYTES:,} are allowed; keep large texts elsewhere",
            point=row,
        )
    return Prepared(json, built if columns else None)


def prepare_by_key(values: Mapping[str, Sequence[Any]], count: int, *, columns: bool = True) -> Prepared:
    """As `prepare`, of `count` payloads that have the same keys: key -> the value of each. Raises InvalidPayload, too."""
    if count > _FEW and values:
        with suppress(TypeError, ValueError):  # the walk finds out why
            raw = _kept(values)
            json = None if raw is None else _joined(values, count)
            if json is not None and _longest(json) <= MAX_PAYLOAD_BYTES:
                done = _finished(Prepared(json, None, raw), columns)
                if done is not None:
                    return done
    # Of maps, which are run without a step of the interpreter for each row.
    rows: list[Payload | None] = list(map(dict, map(zip, repeat(list(values)), zip(*values.values(), strict=True))))
    return prepare(rows or [None] * count, columns=columns)


def _finished(flat: Prepared, columns: bool) -> Prepared | None:
    """With columns, if they are wanted; None where they take a walk."""
    if not columns:
        return flat
    made = None if flat.raw is None else from_raw([flat.raw], len(flat.json))
    return None if made is None else Prepared(flat.json, made)


NO_COLUMNS: Columns = ({}, {"columns": [], "wide": [], "complete": True})  # of no payloads


def _flat(payloads: Sequence[Payload | None]) -> Prepared | None:
    """Payloads of strings and numbers, if nothing about them needs the walk: the common case, three times faster."""
    if set(map(type, payloads)) != {dict}:
        return None
    try:
        values = _uniform(payloads)
        raw = None if values is None else _kept(values)
        if raw is None and not _plain_types(chain.from_iterable(map(dict.values, payloads))):  # type: ignore[arg-type]
            return None
        json = _encoded(payloads)
    except (TypeError, ValueError):
        return None  # the walk finds out why
    if _longest(json) > MAX_PAYLOAD_BYTES:
        return None
    if raw is not None:
        return Prepared(json, None, raw)
    # orjson writes null for what is not finite, and whole numbers up to 2**64; a text may hold the same, and is then walked.
    together = b"".join(json)
    return None if b"null" in together or b"0" * 19 in together.translate(_DIGITS) else Prepared(json, None)


def _plain_types(values: Iterable[Any]) -> set[type]:
    """The types of the values; none where one is not of those that need no walk."""
    found = set(map(type, values))
    return found if found <= _ARRAYS.keys() | {str} else set()


def _kept(values: Mapping[str, Sequence[Any]]) -> Raw | None:
    """The values by key as they are kept, where those of each key are of one kind and fit it."""
    if len(values) > MAX_PATHS:
        return None
    raw: dict[str, Any] = {}
    for key, column in values.items():
        kinds = _plain_types(column)
        if len(kinds) != 1:
            return None
        (kind,) = kinds
        try:
            raw[key] = _narrow(column) if kind is str else np.array(column, _ARRAYS[kind])
        except OverflowError:
            return None
        if kind is float and not np.isfinite(raw[key]).all():
            return None
    return raw


def raw_of(stored: Sequence[bytes]) -> Raw | None:
    """What `prepare` would keep of stored payloads; None where they are not of one form."""
    payloads = parse_all(stored)
    values = _uniform(payloads) if set(map(type, payloads)) == {dict} else None
    return None if values is None else _kept(values)


def _uniform(objects: Sequence[Any]) -> dict[Any, list[Any]] | None:
    """The values by key where all objects have the same keys; None otherwise."""
    if objects and set(map(len, objects)) == {len(objects[0])}:
        with suppress(KeyError):
            return {key: list(map(itemgetter(key), objects)) for key in objects[0]}
    return None


def from_raw(parts: Sequence[Raw], count: int) -> Columns | None:
    """The columns of payloads whose values were kept, part after part; None where the parts are of different form."""
    first = {key: _form(column) for key, column in parts[0].items()}
    if any({key: _form(column) for key, column in part.items()} != first for part in parts):
        return None
    builder = _Builder(MAX_PATHS, True)
    for key, form in first.items():
        described: dict[str, Any] = {"path": join_path((key,)), "rows": count}
        prefix = f"col.{len(builder.columns)}."
        builder.columns.append(described)
        columns = [part[key] for part in parts]
        if form != "S":
            name, described["kind"] = _STORED[form]
            builder.arrays[prefix + name] = np.concatenate(columns)
        elif all(isinstance(column, np.ndarray) for column in columns):
            described["kind"] = STRING
            builder.add_dictionary(prefix, *np.unique(np.concatenate(columns), return_inverse=True))
        elif not builder._column(prefix, list(chain.from_iterable(map(_texts, columns))), None, count, described, (key,)):
            builder.columns.pop()
            builder.wide.append(described["path"])
    return builder.arrays, {"columns": builder.columns, "wide": builder.wide, "complete": builder.complete}


def _narrow(texts: Sequence[str]) -> Sequence[str] | Array:
    """Short texts as NumPy's bytes, (n,) S: in their order, without objects, and sorted while other threads run.

    As they were where one is long, or has a zero, which would be lost at its end. Raises UnicodeEncodeError.
    """
    width, together = max(map(len, texts)), "".join(texts)
    if width > NARROW or "\0" in together:
        return texts
    return np.array(texts, f"S{max(1, width)}") if together.isascii() else np.array([text.encode() for text in texts])


def _texts(column: Sequence[str] | Array) -> Sequence[str]:
    """The inverse of `_narrow`."""
    return [text.decode() for text in column.tolist()] if isinstance(column, np.ndarray) else column


def _form(column: Sequence[str] | Array) -> str:
    """NumPy's letter for the kind of values of a kept column; "S" for texts in either form."""
    return column.dtype.kind if isinstance(column, np.ndarray) else "S"


def _encoded(payloads: Sequence[Payload | None]) -> Sequence[bytes]:
    """Each payload as stored; many in one call of orjson."""
    if len(payloads) <= _FEW:
        return [encode(payload) for payload in payloads]
    if None not in payloads:
        whole = np.frombuffer(orjson.dumps(list(payloads), default, OPTIONS), np.uint8)
        between = np.flatnonzero((whole[1:-3] == ord("}")) & (whole[2:-2] == ord(",")) & (whole[3:-1] == ord("{"))) + 1
        if len(between) == len(payloads) - 1:  # one wherever a payload begins, and so none inside of one
            text = np.delete(whole[1:-1], between)
            ends = np.concatenate([[0], between - np.arange(len(between)), [len(text)]])
            return Texts(ends.astype(np.uint64), text)
    # With a newline after each: a newline inside a JSON string is always escaped.
    json = orjson.dumps(list(chain.from_iterable(zip(payloads, repeat(_NEWLINE)))), default, OPTIONS)[1:-3].split(b",\n,")
    return [b"" if text == b"null" else text for text in json] if None in payloads else json


def _joined(values: Mapping[str, Sequence[Any]], count: int) -> Texts | None:
    """The JSON of payloads that have strings and numbers, those of a key all of one kind: a call of orjson for each key."""
    pieces: list[Iterable[bytes]] = []
    lengths = np.zeros(count, np.int64)
    before = b"{"
    for key, column in values.items():
        texts, name = orjson.dumps(column, default, OPTIONS), orjson.dumps(key, default, OPTIONS) + b":"
        if type(column[0]) is str:  # a quote inside of one is escaped, so that these three are always between two
            own, fixed, then = texts[2:-2].split(b'","'), before + name + b'"', b'",'
        else:
            own, fixed, then = texts[1:-1].split(b","), before + name, b","
        if len(own) != count:
            return None
        pieces += [repeat(fixed), own]
        lengths += np.fromiter(map(len, own), np.int64, count) + len(fixed)
        before = then
    end = before[:-1] + b"}"
    ends = np.zeros(count + 1, np.uint64)
    np.cumsum(lengths + len(end), out=ends[1:])
    return Texts(ends, np.frombuffer(b"".join(chain.from_iterable(zip(*pieces, repeat(end)))), np.uint8))


def _longest(json: Sequence[bytes]) -> int:
    """Bytes of the longest."""
    return int(np.diff(json.offsets).max()) if type(json) is Texts else max(map(len, json), default=0)


def _why_not_json(payloads: Sequence[Payload | None]) -> InvalidPayload | None:
    for row, payload in enumerate(payloads):
        try:
            encode(payload)
        except (TypeError, ValueError) as error:
            return InvalidPayload(f"not JSON: {error}", point=row)
    return None


def build(payloads: Sequence[Payload | None], *, max_paths: int = MAX_PATHS, keep: bool = True) -> Columns:
    """Columns of payloads: (arrays, meta). None is no payload. keep: false to validate only. Raises InvalidPayload."""
    builder = _Builder(max_paths, keep)
    kinds = set(map(type, payloads))
    if not kinds <= {dict, type(None)}:
        payloads = [_as_object(p, row) for row, p in enumerate(payloads)]
    rows: Sequence[Payload | None] = payloads
    present = None
    if kinds != {dict}:
        present = [row for row, p in enumerate(payloads) if p is not None]
        rows = [payloads[row] for row in present]
    builder.walk(rows, present, (), len(payloads))
    return builder.arrays, {"columns": builder.columns, "wide": builder.wide, "complete": builder.complete}


def of_stored(payloads: Sequence[bytes]) -> Columns:
    """Columns of stored payloads."""
    return build(parse_all(payloads))


def _as_object(payload: Any, row: int) -> Payload | None:
    if payload is None or isinstance(payload, dict):
        return payload
    raise InvalidPayload(f"a payload is a dict (a JSON object), not {type(payload).__name__}", point=row)


@dataclass
class _Builder:
    max_paths: int
    keep: bool
    arrays: dict[str, Array] = field(default_factory=dict)
    columns: list[dict[str, Any]] = field(default_factory=list)
    wide: list[str] = field(default_factory=list)
    complete: bool = True

    def walk(self, objects: Sequence[Any], rows: list[int] | None, above: tuple[str, ...], count: int) -> None:
        """One column for each key of `objects`, which stand in `rows` of the `count` rows (None: in all)."""
        if len(above) >= MAX_DEPTH:
            raise InvalidPayload(f"nested deeper than {MAX_DEPTH} levels", point=_row(rows, 0), field=join_path(above))
        uniform = _uniform(objects)
        for key in dict.fromkeys(chain.from_iterable(objects)) if uniform is None else uniform:
            if type(key) is not str:
                at = next(i for i, each in enumerate(objects) if key in each)
                raise InvalidPayload(f"the key {key!r} is no string", point=_row(rows, at), field=join_path(above) or None)
            if uniform is not None:
                values, where = uniform[key], rows
            else:
                at_keys = [i for i, each in enumerate(objects) if key in each]
                values = [objects[i][key] for i in at_keys]
                where = [_row(rows, i) for i in at_keys]
            path = (*above, key)
            if len(self.columns) >= self.max_paths:
                self.complete = False
                for i, value in enumerate(values):
                    _check(value, len(path), _row(where, i), join_path(path))
                continue
            described: dict[str, Any] = {"path": join_path(path)}
            number = len(self.columns)
            self.columns.append(described)
            if not self._column(f"col.{number}.", values, where, count, described, path):
                self.columns.pop()
                self.wide.append(described["path"])

    def _column(
        self, prefix: str, values: list[Any], rows: list[int] | None, count: int, described: dict[str, Any],
        path: tuple[str, ...], *, inside: bool = False,
    ) -> bool:  # fmt: skip
        """Adds a column of `values`, which stand in `rows`. False: the text is too wide for one. inside: of an array."""
        types = set(map(type, values))
        if not types <= _KINDS.keys():
            values = [_converted(v, _row(rows, i), path) for i, v in enumerate(values)]
            types = set(map(type, values))
        found = {_KINDS[t] for t in types}
        described["rows"] = count
        if rows is None and len(found) == 1:
            (kind,) = found
            described["kind"] = kind
            by_kind: dict[int, tuple[list[Any], list[int] | None]] = {kind: (values, rows)}
        else:
            codes = np.zeros(count, np.uint8)
            own = [_KINDS[type(v)] for v in values]
            codes[slice(None) if rows is None else rows] = own
            described["kind"] = None
            by_kind = {}
            for kind in found:
                at = [i for i, k in enumerate(own) if k == kind]
                by_kind[kind] = ([values[i] for i in at], [_row(rows, i) for i in at])
        if STRING in by_kind and not inside and self.keep:
            texts = by_kind[STRING][0]
            distinct = set(texts)
            if len(distinct) > len(values) / 2 and len("".join(distinct)) > _WIDE * len(distinct):
                for kind, (some, where) in by_kind.items():
                    if kind != STRING:
                        for i, value in enumerate(some):
                            _check(value, len(path), _row(where, i), join_path(path))
                return False
        if described["kind"] is None:
            self.arrays[prefix + "kinds"] = codes
        for kind, (some, where) in by_kind.items():
            self._values(prefix, kind, some, where, count, described, path, inside)
        return True

    def _values(
        self, prefix: str, kind: int, values: list[Any], rows: list[int] | None, count: int, described: dict[str, Any],
        path: tuple[str, ...], inside: bool,
    ) -> None:  # fmt: skip
        if kind == BOOL:
            self.arrays[prefix + "bools"] = np.array(values, np.uint8)
        elif kind == INT:
            try:
                self.arrays[prefix + "ints"] = np.array(values, np.int64)
            except OverflowError:
                at = next(i for i, v in enumerate(values) if not -(2**63) <= v < 2**63)
                raise _refused("a whole number must fit int64; store it as a string", rows, at, path) from None
        elif kind == FLOAT:
            floats = self.arrays[prefix + "floats"] = np.array(values, np.float64)
            if not np.isfinite(floats).all():
                at = int(np.flatnonzero(~np.isfinite(floats))[0])
                raise _refused(f"JSON has no {values[at]}; leave the key out, or use None", rows, at, path)
        elif kind == STRING:
            self._strings(prefix, values, rows, path)
        elif kind in (ARRAY, OBJECT) and inside:
            for i, value in enumerate(values):
                _check(value, len(path), _row(rows, i), join_path(path))
        elif kind == ARRAY:
            offsets = np.zeros(len(values) + 1, np.uint64)
            np.cumsum(np.fromiter(map(len, values), np.uint64, len(values)), out=offsets[1:])
            self.arrays[prefix + "item.offsets"] = offsets
            items = list(chain.from_iterable(values))
            try:
                item: dict[str, Any] = {}
                described["item"] = item
                self._column(prefix + "item.", items, None, len(items), item, (*path, "[]"), inside=True)
            except InvalidPayload as error:
                # The element's number says which array it is in, and that one's row is the point.
                at = int(np.searchsorted(offsets, error.point, "right")) - 1 if isinstance(error.point, int) else 0
                raise InvalidPayload(error.reason, point=_row(rows, at), field=join_path(path)) from None
        elif kind == OBJECT:
            self.walk(values, rows, path, count)

    def _strings(self, prefix: str, values: list[str], rows: list[int] | None, path: tuple[str, ...]) -> None:
        try:
            narrow = _narrow(values) if self.keep and len(values) >= _MANY else values
            if isinstance(narrow, np.ndarray):
                self.add_dictionary(prefix, *np.unique(narrow, return_inverse=True))
                return
            distinct = sorted(set(values)) if self.keep else values
            together = "".join(distinct)
            data = together.encode()
        except UnicodeEncodeError:
            at = next(i for i, v in enumerate(values) if not _is_unicode(v))
            raise _refused("the text is not valid Unicode (it has a lone surrogate)", rows, at, path) from None
        if not self.keep:
            return
        places = dict(zip(distinct, range(len(distinct)), strict=True))
        codes = np.fromiter(map(places.__getitem__, values), np.uint32, len(values))
        sizes = map(len, distinct) if len(data) == len(together) else (len(text.encode()) for text in distinct)
        offsets = np.zeros(len(distinct) + 1, np.uint64)
        np.cumsum(np.fromiter(sizes, np.uint64, len(distinct)), out=offsets[1:])
        self.add_codes(prefix, codes, offsets, np.frombuffer(data, np.uint8))

    def add_dictionary(self, prefix: str, distinct: Array, codes: Array) -> None:
        """Distinct texts in their order as NumPy's bytes, (m,) S, without zeros in them, and which of them each row has."""
        widened = widen(distinct)
        self.add_codes(prefix, codes.astype(np.uint32), widened.offsets, widened.text)

    def add_codes(self, prefix: str, codes: Array, offsets: Array, data: Array) -> None:
        self.arrays |= {prefix + "codes": codes, prefix + "text.offsets": offsets, prefix + "text.bytes": data}
        # A dash after a year is rare, so it is looked for in all strings at once.
        fifth = np.minimum(offsets[:-1] + np.uint64(4), np.uint64(max(0, len(data) - 1)))
        dashed = np.flatnonzero(data[fifth] == ord("-")) if len(data) else ()
        text = data.data
        times = {
            code: time
            for code in map(int, dashed)
            if (time := micros_of(bytes(text[offsets[code] : offsets[code + 1]]).decode())) is not None
        }
        if times:
            column = np.full(len(offsets) - 1, NO_TIME, np.int64)
            column[list(times)] = list(times.values())
            self.arrays[prefix + "text.times"] = column


def _row(rows: list[int] | None, at: int) -> int:
    return at if rows is None else rows[at]


def _refused(reason: str, rows: list[int] | None, at: int, path: tuple[str, ...]) -> InvalidPayload:
    return InvalidPayload(reason, point=_row(rows, at), field=join_path(path))


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _converted(value: Any, row: int, path: tuple[str, ...]) -> Any:
    if type(value) in _KINDS:
        return value
    converted = plain(value)
    if converted is ABSENT:
        raise InvalidPayload(f"{type(value).__name__} is no JSON value; convert it first", point=row, field=join_path(path))
    return converted


def _check_object(payload: Payload, row: int, above: tuple[str, ...]) -> None:
    """Validates one payload, as `_Builder.walk` does for many."""
    for key, value in payload.items():
        if type(key) is not str:
            raise InvalidPayload(f"the key {key!r} is no string", point=row, field=join_path(above) or None)
        if type(value) is str and value.isascii():
            continue  # the common case needs no path
        path = (*above, key)
        if isinstance(value, dict) and len(path) < MAX_DEPTH:
            _check_object(value, row, path)
        else:
            _check(value, len(path), row, join_path(path))


def _check(value: Any, depth: int, row: int, path: str) -> None:
    """Validates a value that gets no column of its own."""
    if depth > MAX_DEPTH:
        raise InvalidPayload(f"nested deeper than {MAX_DEPTH} levels", point=row, field=path)
    value = value if type(value) in _KINDS else plain(value)
    if value is ABSENT:
        raise InvalidPayload("it holds something that is no JSON value; convert it first", point=row, field=path)
    if isinstance(value, float) and not math.isfinite(value):
        raise InvalidPayload(f"JSON has no {value}; leave the key out, or use None", point=row, field=path)
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise InvalidPayload("a whole number must fit int64; store it as a string", point=row, field=path)
    if isinstance(value, str) and not _is_unicode(value):
        raise InvalidPayload("the text is not valid Unicode (it has a lone surrogate)", point=row, field=path)
    if isinstance(value, list | tuple):
        for each in value:
            _check(each, depth + 1, row, path)
    elif isinstance(value, dict):
        for key, each in value.items():
            if type(key) is not str:
                raise InvalidPayload(f"the key {key!r} is no string", point=row, field=path)
            _check(each, depth + 1, row, path)
