"""Files that are damaged, mixed up or made to deceive: an error that names file and section, never a wrong answer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash
from vecdb_index.mib.params import MIB

import vecdb
from vecdb import Dense
from vecdb.errors import (
    Corruption,
    NewerFormat,
    NotFound,
)
from vecdb.serverless import layout

from .afar import DIM, QUERIES, ROWS, copied, drawn, header_of, the_object


@pytest.mark.parametrize("section", ["header", "encoder:vector", "live:vector", "codes:vector", "rows:vector", "texts"])
def test_flipped_bits_are_found_in_every_section(
    codes: Path, tmp_path: Path, home: vecdb.Collection, section: str, counted: Callable[[str, int], None]
) -> None:
    """Bits all over a section: a typed error that names it, or, where no search looks at that byte, the right answer."""
    folder = copied(codes, tmp_path / "codes")
    path = the_object(folder)
    data, header = path.read_bytes(), header_of(path)
    start, length = (0, header.body) if section == "header" else (
        header.sections[section].offset, header.sections[section].length
    )  # fmt: skip
    expected = home.search_batch(QUERIES, recall=0.9)
    rng, found, said = np.random.default_rng(1), 0, list[str]()
    for place in rng.integers(start, start + length, 25).tolist():
        damaged = bytearray(data)
        damaged[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        with vecdb.open_codes(folder) as there:
            try:
                answer = there.search_batch(QUERIES, recall=0.9)
                texts = answer.payloads()
                assert np.array_equal(answer.ids, expected.ids) and list(texts) == list(expected.payloads())
            except Corruption as error:
                found += 1
                said.append(str(error))
    everywhere = section in ("header", "encoder:vector", "live:vector", "codes:vector")
    assert found == 25 if everywhere else found > 0
    assert all(section in each and path.name in each and "upload" in each for each in said)
    counted("bits flipped in exported codes", 25)


def test_truncated_objects_are_found_at_any_length(codes: Path, tmp_path: Path) -> None:
    folder = copied(codes, tmp_path / "codes")
    path = the_object(folder)
    data = path.read_bytes()
    texts = header_of(path).sections["texts"]
    for length in [0, 1, 63, 64, 1000, layout.PREFIX, len(data) // 2, texts.offset, texts.offset + texts.length - 1]:
        path.write_bytes(data[:length])
        with vecdb.open_codes(folder) as there, pytest.raises(Corruption, match=path.name):
            there.search(QUERIES[0], exact=True)
            there.search_batch(QUERIES, k=6000).payloads()


def test_objects_that_are_mixed_up(codes: Path, tmp_path: Path) -> None:
    """Another export's object under this one's name: of another encoder, of another width."""
    for name, dim, rotation in (("encoder", DIM, "dense"), ("width", 32, "none")):
        with vecdb.open(tmp_path / f"{name}.db") as db:
            docs = db.create_collection("docs", Dense(dim, index=MIB(rotation=rotation)))
            docs.upsert(ids=range(ROWS), vectors=drawn(ROWS, 1, dim))
            docs.export_codes(tmp_path / name)
        folder = copied(codes, tmp_path / f"mixed-{name}")
        other = the_object(tmp_path / name).read_bytes()
        the_object(folder).write_bytes(other.ljust(the_object(folder).stat().st_size, b"\0"))
        with vecdb.open_codes(folder) as there, pytest.raises(Corruption, match="not the object that the manifest names"):
            there.search(QUERIES[0])


def described(folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """The header's JSON is changed, with all checksums made anew: what someone may write who means harm."""
    path = the_object(folder)
    data = path.read_bytes()
    body = layout.header_length(data, "it")
    _, _, _, length, whole, _ = layout._HEAD.unpack(data[:64])
    said = json.loads(data[64 : 64 + length])
    change(said)
    text = json.dumps(said).encode()
    assert len(text) <= 2 * body
    new = 64 + len(text) + -(64 + len(text)) % 64
    head = layout._HEAD.pack(layout._MAGIC, 1, 0, len(text), whole - body + new, 0)[:-8]
    head += xxhash.xxh3_64_intdigest(head + text).to_bytes(8, "little")
    header = (head + text).ljust(new, b"\0")
    path.write_bytes(header + data[body:])
    manifest = json.loads((folder / layout.MANIFEST).read_bytes())
    (one,) = manifest["objects"]
    one |= {"header": len(header), "length": path.stat().st_size, "check": layout.digest(header), "rows": said["rows"]}
    del manifest["check"], manifest["format"], manifest["version"]
    (folder / layout.MANIFEST).write_bytes(layout.write_manifest(manifest))
    return folder


@pytest.mark.parametrize(
    "change",
    [
        lambda said: said.update(rows=said["rows"] + 1), lambda said: said.update(rows=1 << 40), lambda said: said.update(rows=-1),
        lambda said: said.update(rows="6000"), lambda said: said["fields"]["vector"].update(dim=DIM + 64),
        lambda said: said["fields"]["vector"].update(dim=DIM + 1), lambda said: said["fields"]["vector"].update(dtype="f16"),
        lambda said: said["fields"]["vector"].update(encoder=1), lambda said: said["fields"]["vector"].update(allowed=10**9),
        lambda said: said["fields"]["vector"].update(allowed=7), lambda said: said["fields"]["vector"].update(metric="l2"),
        lambda said: said["fields"]["vector"].update(bits=4), lambda said: said["fields"]["vector"].update(power=0),
        lambda said: said["sections"].pop(), lambda said: said["sections"].pop(0), lambda said: said.update(ids="bytes"),
        lambda said: said["sections"][2].update(offset=1 << 50), lambda said: said["sections"][2].update(length=1),
        lambda said: said["sections"][2].update(sums=[]), lambda said: said["sections"][3].update(piece=0),
        lambda said: said["sections"][3].update(offset=-64), lambda said: said.update(fields=[]), lambda said: said.update(seed=None),
    ],
)  # fmt: skip
def test_headers_that_cannot_be_right_lead_no_kernel_astray(codes: Path, tmp_path: Path, change: Any) -> None:
    folder = described(copied(codes, tmp_path / "codes"), change)
    with pytest.raises(Corruption), vecdb.open_codes(folder) as there:
        there.search(QUERIES[0])


def test_manifests_that_are_none(codes: Path, tmp_path: Path) -> None:
    folder = copied(codes, tmp_path / "codes")
    path = folder / layout.MANIFEST
    data, said = path.read_bytes(), list[str]()
    for place in np.random.default_rng(0).integers(0, len(data), 60).tolist():
        changed = data[:place] + bytes([data[place] ^ 2]) + data[place + 1 :]
        path.write_bytes(changed)
        try:
            with vecdb.open_codes(folder) as there:
                # Of a space, or of the last digit of a number that is read as the same one.
                assert json.loads(changed) == json.loads(data)
                assert there.count() == 6000 - 858
        except (Corruption, NewerFormat) as error:
            said.append(str(error))
    assert len(said) > 40 and all(layout.MANIFEST in each for each in said)
    manifest = json.loads(data)
    del manifest["check"], manifest["format"], manifest["version"]
    (one,) = manifest["objects"]
    for change in (
        {"count": 1 << 50}, {"objects": [{**one, "live": one["rows"] + 1}]}, {"objects": [{**one, "name": "../other.codes"}]},
        {"fields": {"vector": {"kind": "sparse", "index": "auto"}}}, {"whole": {"vector": 5}}, {"objects": [{**one, "calibration": {"vector": {}}}]},
        {"objects": [{**one, "calibration": {"vector": {"curves": [{"k": 1, "selectivity": 1, "queries": 1, "efforts": [], "recalls": [], "lows": [], "seconds": []}], "exact": [], "single": []}}}]},
    ):  # fmt: skip
        path.write_bytes(layout.write_manifest({**manifest, **change}))
        with pytest.raises(Corruption, match=layout.MANIFEST):
            vecdb.open_codes(folder)
    for wrong in (b"", b"{}", b"[]", b"null", data[:-20], b"<html>not found</html>"):
        path.write_bytes(wrong)
        with pytest.raises(Corruption, match="no manifest"):
            vecdb.open_codes(folder)
    path.unlink()
    with pytest.raises(NotFound):
        vecdb.open_codes(folder)
