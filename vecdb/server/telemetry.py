"""What a server tells of itself: metrics for Prometheus, JSON lines for logs, spans for OpenTelemetry.

Metrics need prometheus-client and spans opentelemetry-api (`pip install "vecdb[server]"`); without them nothing is counted
and nothing is traced, and all else works. Safe in any thread.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import orjson

from ..errors import Unsupported, VecdbError

if TYPE_CHECKING:
    from ..database import Database
    from .gate import Call

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_PLAIN = set(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class _Nothing:
    """Stands for a metric where none are kept."""

    def labels(self, *values: str) -> _Nothing:
        return self

    def inc(self, amount: float = 1) -> None: ...
    def observe(self, amount: float) -> None: ...


class Metrics:
    """The counters of one process, and what is read when somebody asks."""

    def __init__(self, wanted: bool) -> None:
        """Raises Unsupported where they are wanted and prometheus-client is not there."""
        self.registry: Any = None
        self.shed: Any = _Nothing()
        self.batches: Any = _Nothing()
        self._calls: Any = _Nothing()
        self._stages: Any = _Nothing()
        self._children: dict[Any, Any] = {}
        if not wanted:
            return
        try:
            import prometheus_client as prometheus
        except ImportError:
            raise Unsupported('metrics need prometheus-client: pip install "vecdb[server]"') from None
        self.registry = registry = prometheus.CollectorRegistry()
        self._calls = prometheus.Histogram(
            "vecdb_request_seconds",
            "Requests, by method and status.",
            ["method", "status"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._stages = prometheus.Histogram(
            "vecdb_stage_seconds", "Parts of requests, by method and stage.", ["method", "stage"], buckets=_SECONDS,
            registry=registry,
        )  # fmt: skip
        self.batches = prometheus.Histogram(
            "vecdb_coalesced_queries", "Queries that went together in one call.", buckets=_SIZES, registry=registry
        )
        self.shed = prometheus.Counter("vecdb_shed", "Requests sent away, by what was full.", ["limit"], registry=registry)

    def seen(self, call: Call, status: str, seconds: float) -> None:
        """A request has ended."""
        self._child(self._calls, call.method, status).observe(seconds)
        for name, took in call.stages:
            self._child(self._stages, call.method, name).observe(took)

    def _child(self, metric: Any, *labels: str) -> Any:
        found = self._children.get((id(metric), *labels))
        if found is None:
            found = self._children[id(metric), *labels] = metric.labels(*labels)
        return found

    def watch(self, db: Database, inside: Callable[[], int]) -> None:
        """Figures of the database and of the process, read when they are asked for."""
        if self.registry is not None:
            self.registry.register(_Watched(db, inside))

    def text(self) -> bytes:
        """As Prometheus reads it."""
        import prometheus_client as prometheus

        made: bytes = prometheus.generate_latest(self.registry)
        return made


def joined(texts: list[tuple[int, str]]) -> bytes:
    """The metrics of several workers as one text, each with the number of its worker."""
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.core import Metric
    from prometheus_client.parser import text_string_to_metric_families

    families: dict[str, Any] = {}
    for worker, text in texts:
        for family in text_string_to_metric_families(text):
            whole = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            for sample in family.samples:
                whole.samples.append(sample._replace(labels={**sample.labels, "worker": str(worker)}))

    class Joined:
        def collect(self) -> Iterator[Any]:
            yield from families.values()

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Joined())
    made: bytes = generate_latest(registry)
    return made


class _Watched:
    """A collector: segments, memtables, indexes, recall as it was delivered, files, memory."""

    def __init__(self, db: Database, inside: Callable[[], int]) -> None:
        self._db, self._inside = db, inside

    def describe(self) -> list[Any]:
        return []

    def collect(self) -> Iterator[Any]:
        from prometheus_client.core import GaugeMetricFamily

        def gauge(name: str, told: str, value: float) -> Any:
            return GaugeMetricFamily(name, told, value)

        yield gauge("vecdb_requests_inside", "Requests and streams that are under way.", self._inside())
        yield gauge("vecdb_resident_bytes", "Memory of the process, with files that it has mapped.", _resident())
        yield gauge("vecdb_anonymous_bytes", "Memory of the process without the files that it has mapped.", _resident(True))
        try:
            for name, value in self._db.info().flat().items():
                yield gauge(name.replace(".", "_"), "See docs/durability.md.", float(value))
            infos = [self._db[name].info() for name in self._db.collections()]
        except VecdbError:  # closing, or dropped meanwhile
            return
        of_collection = {
            "rows": "Live points.", "dead": "Rows replaced or deleted, still on disk.", "segments": "Segments.",
            "memtable_rows": "Rows in memory and in the log only.", "bytes": "Bytes of segment files.",
        }  # fmt: skip
        for figure, told in of_collection.items():
            family = GaugeMetricFamily(f"vecdb_collection_{figure}", told, labels=["collection"])
            for info in infos:
                family.add_metric([info.name], getattr(info, figure))
            yield family

        def of_field(name: str, told: str) -> Any:
            return GaugeMetricFamily(name, told, labels=["collection", "field"])

        indexed = of_field("vecdb_index_rows", "Rows that have their index.")
        building = of_field("vecdb_index_building", "Share done of what is being indexed.")
        failing = of_field("vecdb_index_failed", "1 where an index could not be built.")
        asked = of_field("vecdb_recall_asked", "Mean recall that probed queries asked.")
        had = of_field("vecdb_recall_delivered", "Mean recall that they had.")
        probes = of_field("vecdb_recall_probes", "Queries run again exactly.")
        advised = of_field("vecdb_index_advised", "1 where an index serves its rows badly: see its advice in `vecdb info`.")
        figures = GaugeMetricFamily(
            "vecdb_index_figure", "What an index tells of itself, as in `vecdb info`.", labels=["collection", "field", "figure"]
        )
        for info in infos:
            for field, index in info.indexes.items():
                where = [info.name, field]
                indexed.add_metric(where, index.rows)
                building.add_metric(where, 1.0 if index.building is None else index.building)
                failing.add_metric(where, float(index.error is not None))
                advised.add_metric(where, float(bool(index.advice)))
                for figure, value in index.figures.items():
                    figures.add_metric([*where, figure], value)
                if index.probed is not None:
                    asked.add_metric(where, index.probed.asked)
                    had.add_metric(where, index.probed.delivered)
                    probes.add_metric(where, index.probed.queries)
        yield from (indexed, building, failing, asked, had, probes, advised, figures)


def _resident(anonymous: bool = False) -> float:
    name = "RssAnon" if anonymous else "VmRSS"
    try:
        with open("/proc/self/status", encoding="ascii") as status:
            for line in status:
                if line.startswith(name):
                    return 1024.0 * int(line.split()[1])
    except OSError:  # macOS
        pass
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak if sys.platform == "darwin" else 1024 * peak)


# -- logs ----------------------------------------------------------------------------------------------------


class _JsonLines(logging.Formatter):
    """One JSON object a line: time, level, logger, message, and what was said beside it."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "log": record.name,
            "message": record.getMessage(),
            "pid": record.process,
        }
        line |= {name: value for name, value in vars(record).items() if name not in _PLAIN}
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return orjson.dumps(line, default=str).decode()


def log_to_stderr(level: str) -> None:
    """JSON lines on stderr, which is where whoever runs services looks for them."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLines())
    root = logging.getLogger("vecdb")
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    root.propagate = False


# -- traces --------------------------------------------------------------------------------------------------


def _tracer() -> Any:
    """OpenTelemetry's, where it is installed and the environment says where traces go."""
    if not any(name.startswith("OTEL_") for name in os.environ):
        return None
    try:
        from opentelemetry import trace
    except ImportError:
        return None
    return trace.get_tracer("vecdb.server")


_traced = _tracer()


def span(call: Call) -> AbstractContextManager[Any]:
    """A span for one request, below that of its caller (W3C traceparent), or nothing."""
    return nullcontext() if _traced is None else _span(call)


@contextmanager
def _span(call: Call) -> Iterator[None]:
    from opentelemetry import propagate, trace

    parent = propagate.extract({name: value for name, value in call.metadata.items() if isinstance(value, str)})
    with _traced.start_as_current_span(call.method, context=parent, kind=trace.SpanKind.SERVER) as made:
        made.set_attribute("rpc.system", "grpc")
        made.set_attribute("rpc.method", call.method)
        made.set_attribute("vecdb.request_id", call.request_id)
        yield
        made.set_attribute("vecdb.collection", call.collection)
        for name, seconds in call.stages:
            made.set_attribute(f"vecdb.{name}_ms", 1000 * seconds)
