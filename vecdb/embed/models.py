"""What the adapters of local models share: their libraries, where a model is, and fingerprints of what decides its vectors.

A fingerprint is an xxh3 of weights, tokenizer and settings: it says which vectors a model gives, not where its files are or
when they were written. Plain functions on what they are given; safe in any thread.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import xxhash

from ..errors import InvalidInput, NotFound, Unsupported

_PIECE = 1 << 22  # bytes hashed at a time
_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")  # a model's name on a hub: NAME or OWNER/NAME
_LONGEST = 300  # characters of a library's message that an error repeats


def library(module: str, extra: str) -> Any:
    """An optional package, imported now. Raises Unsupported, which says how to install it.

    `Any`, because these packages come with types of their own or without, in versions that differ in them.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise Unsupported(f"{extra} encoders need {module}: pip install 'vecdb[{extra}]' ({one_line(error)})") from error


def one_line(error: object) -> str:
    """An error of a library, as a part of one of ours: its first words, and no line breaks."""
    said = " ".join(str(error).split()) or type(error).__name__
    return said if len(said) <= _LONGEST else said[:_LONGEST] + "…"


def local_folder(what: str | os.PathLike[str]) -> Path | None:
    """The folder that is meant, or None if `what` is a model's name on a hub, which only the library can look up.

    What is no possible name is a folder, and so is anything that exists. Raises NotFound, InvalidInput.
    """
    if not str(what).strip():
        raise InvalidInput("a model is its name or its folder, not an empty text")
    path = Path(what).expanduser()
    if isinstance(what, str) and _NAME.fullmatch(what) and not what.startswith((".", "-")) and not path.exists():
        return None
    if not path.exists():
        raise NotFound(f"there is no folder {what}")
    if not path.is_dir():
        raise InvalidInput(f"{what} is a file; a model is a folder of files")
    return path


def label(kind: str, what: str | os.PathLike[str]) -> str:
    """The name of an encoder: its kind, and what helps people to know it again.

    Of a folder that is the last part of its path: where a model is kept is nobody's business but this machine's.
    """
    folder = Path(what).expanduser()
    known = folder.resolve().name if folder.exists() else str(what)
    return f"{kind}:{known}"


class Fingerprint:
    """A running xxh3 of named parts. Each goes in with its length, so that no two lists of parts look alike."""

    def __init__(self) -> None:
        self._hash = xxhash.xxh3_128()

    def add(self, name: str, data: Any) -> None:
        """data: anything with a buffer, C-contiguous."""
        view = memoryview(data).cast("B") if memoryview(data).nbytes else memoryview(b"")
        self._hash.update(f"{name}\0{view.nbytes}\0".encode())
        for start in range(0, view.nbytes, _PIECE):
            self._hash.update(view[start : start + _PIECE])

    def add_file(self, name: str, path: Path) -> None:
        with path.open("rb") as file:
            self._hash.update(f"{name}\0{os.fstat(file.fileno()).st_size}\0".encode())
            while piece := file.read(_PIECE):
                self._hash.update(piece)

    def add_settings(self, name: str, settings: Mapping[str, Any] | Iterable[Any]) -> None:
        self.add(name, json.dumps(settings, sort_keys=True, default=str).encode())

    def done(self) -> str:
        return f"xxh3:{self._hash.hexdigest()}"


def tokenizer_text(tokenizer: Any) -> bytes:
    """A `tokenizers.Tokenizer` as JSON, without truncation and padding, which encoding sets as it needs them."""
    said = json.loads(tokenizer.to_str())
    said["truncation"] = said["padding"] = None
    return json.dumps(said, sort_keys=True, ensure_ascii=False).encode()
