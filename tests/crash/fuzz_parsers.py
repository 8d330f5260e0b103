"""Coverage-guided fuzzing of everything that reads bytes from a disk: only typed errors may leave.

    python tests/crash/fuzz_parsers.py RUNS SEED FOLDER [TARGET …]

runs each target in a process of its own (libFuzzer never returns), two at a time, from a corpus of sound inputs in FOLDER; says
{"target", "ok", "seconds", "said"} for each, as JSON lines. What a target raised is in FOLDER as `crash-…`, and
`… FOLDER TARGET` with RUNS 0 tries the corpus, and so these, again. A target that has checksums in its way puts them right first.
"""

from __future__ import annotations

import json
import os
import re
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import atheris
import numpy as np
import orjson

with atheris.instrument_imports(include=["vecdb_storage", "vecdb.ingest", "vecdb.filters"]):
    from vecdb_storage import arrayfile, columns, pages
    from vecdb_storage.arrayfile import ArrayFile, checksum
    from vecdb_storage.batch import Batch
    from vecdb_storage.column_build import of_stored
    from vecdb_storage.errors import Corruption, VecdbError
    from vecdb_storage.files import Files
    from vecdb_storage.manifest import Manifest
    from vecdb_storage.store import Store

    from vecdb.filters import F, evaluate
    from vecdb.ingest.peers.hnswlib import HnswlibFile

import lmdb

from vecdb.points import batch_from_arrays
from vecdb.schema import Dense


class Memory(Files):
    """One file, in memory."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def open(self, path: Path) -> int:
        return 0

    def close(self, fd: int) -> None: ...

    def size(self, path: Path) -> int:
        return len(self.data)

    def read(self, path: Path) -> bytes:
        return self.data

    def read_at(self, fd: int, offset: int, length: int, path: Path) -> bytes:
        assert 0 <= offset < 2**63 and 0 <= length < 2**63, "pread would refuse that"
        return self.data[offset : offset + length]

    def map(self, fd: int, length: int, path: Path, offset: int = 0) -> Any:
        return self.data


PATH = Path("file")
Target = Callable[[bytes], None]


# -- targets: what sound inputs are, and what is done with any -------------------------------------


def some_batch(extra: dict[str, Any] | None = None) -> Batch:
    payloads: list[Any] = [
        {"n": i, "s": f"text {i}", "a": [i, None, "x"], "t": "2024-01-01", "f": i / 3, "b": True} for i in range(4)
    ]
    return batch_from_arrays({"vector": Dense(3)}, ["a", "b", "ž", "d"], np.ones((4, 3), np.float32), [*payloads[:3], extra])


def no_extent(extent: Any) -> Any:
    if extent.rows * extent.dim > 1 << 20:
        raise Corruption("too long for the file")
    return np.zeros((extent.rows, extent.dim), extent.dtype)


def records() -> tuple[list[bytes], Target]:
    batch = some_batch()
    sound = [batch.to_record(), Batch(deletes=[1, 2]).to_record(), Batch(deletes=["x"]).to_record()]
    meta, arrays = arrayfile.unpack(sound[0])
    extent = {"name": "01J", "offset": 64, "dtype": "<f4", "rows": 4, "dim": 3, "xxh3": 7}
    del arrays["field.vector.vectors"]
    sound.append(arrayfile.pack(meta | {"extent": extent}, arrays))

    def read(data: bytes) -> None:
        found = Batch.from_record(data, no_extent)
        assert len(found.keys) == len(found.payloads)

    return sound, read


def array_files() -> tuple[list[bytes], Target]:
    """A directory, over 64 KiB of numbers."""
    owner, body = bytes(range(16)), arrayfile._header(bytes(range(16)), 1) + bytes(range(256)) * 256
    entries = [
        {"name": "a", "dtype": "<f4", "shape": [16, 4], "offset": 64, "bytes": 256, "xxh3": [1]},
        {"name": "b", "dtype": "|u1", "shape": [100], "offset": 320, "bytes": 100, "xxh3": [2]},
        {"name": "c", "dtype": "<u8", "shape": [0], "offset": 448, "bytes": 0, "xxh3": []},
    ]

    def read(data: bytes) -> None:
        text = data + bytes(-len(data) % 64)
        foot = arrayfile._FOOTER.pack(b"VECDBEND", 1, 0, len(body), len(data), checksum(data), owner, 0)[:-8]
        file = ArrayFile(Memory(body + text + foot + checksum(foot).to_bytes(8, "little")), PATH, owner)
        for name in file.names():
            array = file.unchecked(name)
            assert array.nbytes <= len(body) + len(text) + 64
            array.tobytes()
            with suppress(Corruption):
                file.array(name)
        list(file.verify())

    return [orjson.dumps({"meta": {"rows": 1}, "arrays": entries}), b'{"meta":{},"arrays":[]}'], read


def manifests() -> tuple[list[bytes], Target]:
    entry = {"name": "01J", "rows": 9, "seq": None, "bytes": 99, "indexes": {"vector": "01J.vector.01K.idx"}}
    sound = [Manifest(3).to_json(), orjson.dumps({"flushed": 41, "segments": [entry, entry | {"seq": 7, "indexes": {}}]})]

    def read(data: bytes) -> None:
        for segment in Manifest.from_json(data).segments:
            assert all("/" not in file for file in segment.files)

    return sound, read


def descriptions() -> tuple[list[bytes], Target]:
    sound = [
        f"format 1\nvecdb 0.1.0\nuuid {bytes(16).hex()}\nmeta meta-1.mdb\n".encode(),
        b"format 7\nvecdb 9.9\nuuid 00\nmeta meta-2.mdb",
    ]

    def read(data: bytes) -> None:
        _, meta = Store._identify(SimpleNamespace(files=Memory(data), path=PATH))  # type: ignore[arg-type]
        assert meta.startswith("meta-") and "/" not in meta

    return sound, read


def trees() -> tuple[list[bytes], Target]:
    """Changes of a sound file: each u8 page, u16 offset, u8 value."""
    with tempfile.TemporaryDirectory() as folder:
        env = lmdb.open(f"{folder}/file", subdir=False, max_dbs=4, map_size=1 << 24, meminit=False, sync=False)
        tables = [env.open_db(name) for name in (b"one", b"two")]
        for turn in range(5):
            with env.begin(write=True) as txn:
                for i in range(40):
                    txn.put(b"key %d" % (i * 7 % 40 + turn), bytes(9000 if i == 3 else 150), db=tables[i % 2])
                txn.delete(b"key %d" % turn, db=tables[0])
        transaction, length = env.info()["last_txnid"], (env.info()["last_pgno"] + 1) * 4096
        env.close()
        sound = Path(f"{folder}/file").read_bytes()[:length].ljust(length, b"\0")
    pages.check_tree(Memory(sound), PATH, transaction)
    count = length // 4096

    def read(data: bytes) -> None:
        changed = bytearray(sound)
        for page, offset, value in struct.iter_unpack("<BHB", data[: len(data) // 4 * 4]):
            changed[page % count * 4096 + offset % 4096] = value
        pages.check_tree(Memory(bytes(changed)), PATH, transaction)

    return [b"", *(struct.pack("<BHB", page, at, 7) for page in range(count) for at in (0, 10, 12, 14, 16, 4080))], read


def column_sets() -> tuple[list[bytes], Target]:
    """Changes of the arrays under some columns: each u8 array, u8 what, u16 where; then, behind a zero byte, what the meta is."""
    batch = some_batch({"n": "mixed", "s": None, "in": {"x": 1.5}})
    arrays, meta = of_stored(batch.payloads)
    names = sorted(arrays)
    filters = [
        F("n") >= 1, F("n") == "mixed", F("s") == "text 1", F("s").startswith("te"), F("s") < "text 2", F("a").contains("x"),
        F("a").contains(1), F("t") < date(2024, 5, 5), F("f").in_([0.0, 1, "x", "y"]), F("in.x") == 1.5, F("b") == True, ~F("q").exists(),
    ]  # fmt: skip

    def read(data: bytes) -> None:
        edits, _, text = data.partition(b"\0\0\0\0")
        changed = dict(arrays)
        for which, what, where in struct.iter_unpack("<BBH", edits[: len(edits) // 4 * 4]):
            name = names[which % len(names)]
            array = changed.get(name, arrays[name]).copy()
            match what % 6:
                case 0:
                    changed.pop(name, None)
                    continue
                case 1:
                    array = array[: where % (len(array) + 1)]
                case 2:
                    array = array.view(np.uint8)
                case 3 if len(array) < 1000:
                    array = np.concatenate([array, array])
                case _ if len(array):
                    array.view(np.uint8)[where % array.nbytes] = what
            changed[name] = array
        said = meta
        if text:
            said = orjson.loads(
                re.sub(rb"\d{6,}", b"9", text)
            )  # elements that are all null have no bytes that bound their number
        opened = columns.open_columns(said, changed, len(batch.payloads))
        for each in filters:
            evaluate(each, opened, lambda row: None)

    return [b"", b"\0\0\0\0" + orjson.dumps(meta), *(bytes([i, k, 3, 0]) for i in range(len(names)) for k in range(6))], read


def graphs() -> tuple[list[bytes], Target]:
    """hnswlib's own files: three elements of two dimensions, one of which has a layer above."""
    import math

    header = struct.pack("<6QiI3QdQ", 0, 8, 3, 36, 28, 20, 1, 0, 2, 4, 2, 1 / math.log(2), 10)
    assert len(header) == 96
    element = [struct.pack("<I4I2fQ", 2, 1, 2, 0, 0, 0.5, 1.5, label) for label in (5, 6, 7)]
    upper = struct.pack("<I", 12) + struct.pack("<I2I", 0, 0, 0)
    sound = header + b"".join(element) + upper + bytes(8)
    path = Path(tempfile.mkdtemp()) / "graph"

    def read(data: bytes) -> None:
        path.write_bytes(data)
        with HnswlibFile(path) as file:
            assert sum(len(some.labels) + some.deleted for some in file.elements()) == file.count

    read(sound)
    return [sound], read


# What a target may raise beside VecdbError: the caller of `evaluate` makes Corruption of these.
BESIDES: dict[str, tuple[type[Exception], ...]] = {"column_sets": (KeyError, IndexError, ValueError, TypeError)}
DEARER = {"trees": 3}  # a run of it takes so many times as long as of others, and so it gets fewer
TARGETS: dict[str, Callable[[], tuple[list[bytes], Target]]] = {
    each.__name__: each for each in (records, array_files, manifests, descriptions, trees, column_sets, graphs)
}


TOKENS = (
    "null", "true", "-1", "0", "1", "1.5", "1e308", "9223372036854775807", "18446744073709551615", "[]", "{}", "[-1]", ",", ":", '""', "../",
    *(f'"{word}"' for word in ("meta", "arrays", "name", "dtype", "shape", "offset", "bytes", "xxh3", "<f8", "|u1", "O", "extent", "rows", "dim",
      "fields", "flushed", "segments", "seq", "indexes", "columns", "path", "kind", "item", "wide", "complete")),
    "format ", "uuid ", "meta ",
)  # fmt: skip

# -- one process for each --------------------------------------------------------------------------


def fuzz(name: str, runs: int, seed: int, folder: Path) -> None:
    """Never returns."""
    sound, read = TARGETS[name]()
    runs //= DEARER.get(name, 1)

    def one(data: bytes) -> None:
        with suppress(VecdbError, *BESIDES.get(name, ())):
            read(data)

    corpus = folder / name
    corpus.mkdir(parents=True, exist_ok=True)
    for number, each in enumerate(sound):
        (corpus / f"sound-{number}").write_bytes(each)
        one(each)

    atheris.Setup(
        [name, f"-runs={runs}", f"-seed={seed}", "-timeout=20", "-rss_limit_mb=2048", "-max_len=4096", "-verbosity=0",
         f"-dict={folder}/words", f"-artifact_prefix={corpus}/", str(corpus)], one,
    )  # fmt: skip
    atheris.Fuzz()


def main() -> None:
    runs, seed, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    waiting = sys.argv[4:] or list(TARGETS)
    (folder / "words").write_text("".join('"' + token.replace('"', '\\"') + '"\n' for token in TOKENS))
    running: dict[int, tuple[str, Path, float]] = {}
    while waiting or running:
        while waiting and len(running) < 2:
            name = waiting.pop(0)
            said = folder / f"{name}.log"
            sys.stdout.flush()
            pid = os.fork()
            if pid == 0:
                file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                os.dup2(file, 1)
                os.dup2(file, 2)
                try:
                    fuzz(name, runs, seed, folder)
                finally:
                    os._exit(3)
            running[pid] = name, said, time.perf_counter()
        pid, status = os.wait()
        name, said, started = running.pop(pid)
        answer = {"target": name, "ok": status == 0, "seconds": round(time.perf_counter() - started, 2)}
        if status:
            answer["said"] = said.read_text(errors="replace")[-4000:]
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
