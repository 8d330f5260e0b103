"""What commands print, and what they all take: tables and facts for people, JSON for scripts, progress for those who wait.

Tables go to stdout, progress and remarks to stderr. Colours and widths are rich's, which keeps to NO_COLOR and to the terminal.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from ..api import Collection, Database

Db = Annotated[
    str,
    typer.Option(
        "--db",
        envvar="VECDB_DB",
        help="The database: a directory, a server (grpc://host:port, grpcs://…), or exported codes (https://…, s3://…).",
        show_default=False,
    ),
]
Name = Annotated[str, typer.Argument(help="The collection.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Field = Annotated[str | None, typer.Option("--field", help="Which vector field, where there are several.", show_default=False)]
Where = Annotated[
    str | None, typer.Option("--where", help="A filter, such as \"year >= 2020 and lang == 'en'\".", show_default=False)
]


# -- databases -------------------------------------------------------------------------------------------------


@contextmanager
def opened(path: str, *, write: bool = False, create: bool = False, **options: Any) -> Iterator[Database]:
    """The database; read-only beside a process that writes, unless `write`. create: a directory that is not there is made.

    A server is asked with the key, certificates and authorities of the environment: VECDB_API_KEY, VECDB_CA, VECDB_CERT,
    VECDB_KEY.
    """
    import vecdb
    from vecdb.errors import NotFound, ReadOnly, Unsupported

    if is_server(path):
        if options:
            raise Unsupported(f"{path}: the server was told its own {', '.join(options)} when it was started")
        with vecdb.connect(path) as remote:
            yield remote
        return
    if is_codes(path):
        if write:
            raise ReadOnly("exported codes are searched, and not written to: use the database that they are from")
        _import_numba()
        from vecdb.serverless.collection import CodesDatabase

        codes = CodesDatabase(vecdb.open_codes(path))
        try:
            yield cast("Any", codes)
        finally:
            codes.close()
        return
    if not create and not os.path.exists(os.path.join(path, "VECDB")):
        raise NotFound(f"{path}: there is no database; `vecdb create` and `vecdb ingest` make one")
    _import_numba()
    db = vecdb.open(path, read_only=not write, **options)
    try:
        yield db
    finally:
        db.close()


def _import_numba() -> None:
    """Numba imports these packages to see whether they are there, a tenth of a second, and nothing here needs them."""
    hidden = {"cffi", "yaml"} - sys.modules.keys()
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None: "there is no such module"
    try:
        import numba.core.typing.cffi_utils  # noqa: F401
    finally:
        for name in hidden:
            del sys.modules[name]


def is_server(path: str) -> bool:
    return path.startswith(("grpc://", "grpcs://"))


def is_codes(path: str) -> bool:
    """Whether this is a URL that is no server's, or a directory of exported codes."""
    if "://" in path:
        return not is_server(path)
    return os.path.exists(os.path.join(path, "manifest.json")) and not os.path.exists(os.path.join(path, "VECDB"))


def ids_of(collection: Collection, ids: Sequence[str]) -> list[Any]:
    """Ids of a command line, in the collection's kind."""
    from vecdb.errors import InvalidId

    if collection.info().ids != "int":
        return list(ids)
    try:
        return [int(one) for one in ids]
    except ValueError:
        wrong = next(one for one in ids if not one.lstrip("-").isdigit())
        raise InvalidId(f"{wrong!r}: this collection's ids are whole numbers") from None


# -- printing --------------------------------------------------------------------------------------------------


def console(*, error: bool = False) -> Console:
    from rich.console import Console

    stream = sys.stderr if error else sys.stdout
    width = None if stream.isatty() or "COLUMNS" in os.environ else 1000  # a pipe cuts nothing off
    return Console(stderr=error, highlight=False, soft_wrap=not stream.isatty(), width=width)


def say(text: str) -> None:
    """A remark, on stderr."""
    print(text, file=sys.stderr, flush=True)


def json_of(value: Any) -> str:
    """One line of JSON; arrays of numbers become lists."""
    import orjson

    return orjson.dumps(value, plain, orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS).decode()


def plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if hasattr(value, "to_dict"):  # a sparse vector
        return value.to_dict()
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, frozenset | set | tuple):
        return list(value)
    return str(value)


def print_json(value: Any) -> None:
    print(json_of(value), flush=True)


def table(columns: Sequence[str], rows: Sequence[Sequence[object]], title: str | None = None) -> None:
    """Numbers to the right, texts to the left."""
    from rich.table import Table
    from rich.text import Text

    made = Table(title=title, box=None, pad_edge=False, title_justify="left", header_style="bold")
    for at, column in enumerate(columns):
        numbers = bool(rows) and all(isinstance(row[at], int | float) or row[at] is None for row in rows)
        made.add_column(column, justify="right" if numbers else "left", overflow="fold")
    for row in rows:
        made.add_row(*(Text(shown(value)) for value in row))
    console().print(made)


def facts(values: Mapping[str, object], title: str | None = None) -> None:
    """Names and values, one line each."""
    from rich.table import Table
    from rich.text import Text

    made = Table(title=title, box=None, show_header=False, pad_edge=False, title_justify="left")
    made.add_column(style="bold")
    made.add_column(overflow="fold")
    for name, value in values.items():
        made.add_row(name, Text(shown(value)))
    console().print(made)


def shown(value: object) -> str:
    """A value for people."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.4f}".rstrip("0").rstrip(".") if 1e-3 <= abs(value) < 1e15 else f"{value:.4g}"
    return value if isinstance(value, str) else json_of(value)


def bytes_shown(count: float | None) -> str:
    if count is None:
        return "-"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024 or unit == "GiB":
            return f"{count:,.0f} {unit}" if unit == "B" else f"{count:,.1f} {unit}"
        count /= 1024
    raise AssertionError


def seconds_shown(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    whole = round(seconds)
    if whole < 100:
        return f"{whole} s"
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}" if whole >= 3600 else f"{whole // 60}:{whole % 60:02}"


def field_shown(field: Any) -> str:
    """What a field holds."""
    return f"{field.dim} {field.dtype} {field.metric}" if hasattr(field, "dim") else "sparse"


def vector_shown(vector: Any, most: int = 4) -> str:
    """The first numbers of a vector."""
    if hasattr(vector, "to_dict"):
        shown = [f"{component}: {weight:.4g}" for component, weight in list(vector.to_dict().items())[:most]]
        return f"{{{', '.join(shown)}{', …' if len(vector) > most else ''}}} ({len(vector)})"
    numbers = [f"{number:.4g}" for number in list(vector)[:most]]
    return f"[{', '.join(numbers)}{', …' if len(vector) > most else ''}] ({len(vector)})"


def cut(text: str, most: int = 100) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 1] + "…"


# -- progress ----------------------------------------------------------------------------------------------------

EVERY = 10.0  # seconds between lines where stderr is no terminal


@contextmanager
def progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """For calls that report (bytes done, of all): a bar on a terminal, lines elsewhere."""
    began = last = time.monotonic()
    if sys.stderr.isatty():
        from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
        from rich.progress import Progress as Bars

        with Bars(
            TextColumn(what),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=console(error=True),
            transient=True,
        ) as bars:
            task = bars.add_task(what, total=None)
            yield lambda done, total: bars.update(task, completed=done, total=total)
        return

    def line(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= EVERY:
            last = now
            rate = done / (now - began)
            left = (total - done) / rate if rate else None
            say(f"{what}: {bytes_shown(done)} of {bytes_shown(total)}, {bytes_shown(rate)}/s, {seconds_shown(left)} left")

    yield line


@contextmanager
def waiting(what: str, share: Callable[[], tuple[float, float]]) -> Iterator[Callable[[], None]]:
    """For work that can be asked how many of its segments are done, of how many; what is yielded is to be called often."""
    if sys.stderr.isatty():
        from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bars

        with Bars(
            TextColumn(what),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            console=console(error=True),
            transient=True,
        ) as bars:
            task = bars.add_task(what, total=None)

            def draw() -> None:
                done, total = share()
                bars.update(task, completed=done, total=total or None)

            yield draw
        return
    last = time.monotonic()

    def line() -> None:
        nonlocal last
        if time.monotonic() - last >= EVERY:
            last = time.monotonic()
            done, total = share()
            say(f"{what}: {done:.1f} of {total:.0f} segments")

    yield line
