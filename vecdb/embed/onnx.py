"""A sentence model in ONNX, run by onnxruntime: a folder with model.onnx and tokenizer.json. Needs no torch, and no network.

A model's output may be one vector for each text (`sentence_embedding`, or any of two axes), which is taken as it is, or one for
each token, of which the mean is taken, or the first where `1_Pooling/config.json` of the folder says so. Texts are truncated to
what the model can take. They run in batches of about equal length; what the padding gives counts nothing, so a text gets the
same vector in any company, up to rounding. A model that rescales its numbers by what is in a batch (dynamic quantization) runs
one text at a time, because there it would not. An Onnx is safe in any thread.
"""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import InvalidInput, NotFound
from .models import Fingerprint, label, library, local_folder, one_line

_BATCH = 32
_UNKNOWN = 512  # tokens, where nothing in the folder says how many a model can take
_UNBOUNDED = 1_000_000  # tokenizers say "no limit" by a larger number
_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids")
_TYPES = {"tensor(int64)": np.int64, "tensor(int32)": np.int32}
_OFFSET = {"roberta", "xlm-roberta", "camembert", "mpnet", "longformer"}  # whose first positions are not for tokens


class Onnx:
    """folder: with model.onnx (or onnx/model.onnx) and tokenizer.json. max_length: tokens, instead of the model's own maximum.

    pooling: "mean" or "cls", instead of what the folder says. Raises NotFound, InvalidInput, Unsupported.
    """

    def __init__(self, folder: str | os.PathLike[str], *, max_length: int | None = None, pooling: str | None = None) -> None:
        onnxruntime, tokenizers = library("onnxruntime", "onnx"), library("tokenizers", "onnx")
        at = local_folder(Path(folder) if str(folder).strip() else folder)
        assert at is not None
        model = next((at / each for each in ("model.onnx", "onnx/model.onnx") if (at / each).is_file()), None)
        if model is None or not (at / "tokenizer.json").is_file():
            raise NotFound(f"{folder} has no {'model.onnx' if model is None else 'tokenizer.json'}")
        self.name = label("onnx", at)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors; its warnings are about how it optimizes
        self._session = _loaded(
            model, lambda path: onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        )
        inputs = {each.name: each for each in self._session.get_inputs()}
        if "input_ids" not in inputs or any(name not in _INPUTS or each.type not in _TYPES for name, each in inputs.items()):
            raise InvalidInput(f"{model} is no model of texts: it wants {', '.join(inputs) or 'nothing'}")
        self._inputs = {name: _TYPES[each.type] for name, each in inputs.items()}
        self._output = _output_of(self._session.get_outputs(), model)
        # Most models take any number of texts and tokens; some were exported for one number of either.
        self._rows, self._length = (size if isinstance(size, int) else None for size in inputs["input_ids"].shape[:2])
        self._batch = self._rows or (1 if _rescales(model) else _BATCH)
        self._tokenizer = _loaded(at / "tokenizer.json", tokenizers.Tokenizer.from_file)
        truncation, padding = self._tokenizer.truncation or {}, self._tokenizer.padding or {}
        most = self._length or _max_length(at, truncation.get("max_length"))
        self.max_length = most if max_length is None else max_length
        frame = self._tokenizer.num_special_tokens_to_add(False)
        if self.max_length <= frame or (self._length is not None and self.max_length > self._length):
            raise InvalidInput(f"{folder}: max_length is above {frame} and at most the model's {most}, not {self.max_length}")
        self.pooling = pooling or _pooling(at)
        if self.pooling not in ("mean", "cls") and self._output != "sentence_embedding":  # of which nothing is left to pool
            raise InvalidInput(f'{folder}: pooling is "mean" or "cls", not {self.pooling!r}')
        # Once, and here: a tokenizer that is changed while another thread uses it raises. Padding is ours, batch by batch.
        self._pad = int(padding.get("pad_id", 0)), int(padding.get("pad_type_id", 0))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(self.max_length, direction=truncation.get("direction", "right"))
        hashed = Fingerprint()
        for part in _parts_of(model):
            hashed.add_file(part.relative_to(model.parent).as_posix(), part)
        hashed.add_file("tokenizer.json", at / "tokenizer.json")
        hashed.add_settings("settings", [self.max_length, self.pooling, self._output])
        self.fingerprint = hashed.done()
        self.dim = -1
        self.dim = self.encode(["a"]).shape[1]  # a model that cannot run says so now

    def __repr__(self) -> str:
        return f"Onnx({self.name.removeprefix('onnx:')!r}, dim={self.dim})"

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """(n,) texts -> (n, dim) float32."""
        if not len(texts):
            return np.zeros((0, self.dim), np.float32)
        try:
            tokens = self._tokenizer.encode_batch(list(texts))
        except Exception as error:
            raise InvalidInput(f"{self.name} cannot take a text apart: {one_line(error)}") from error
        order = sorted(range(len(texts)), key=lambda at: len(tokens[at].ids))
        vectors: npt.NDArray[np.float32] | None = None
        for start in range(0, len(order), self._batch):
            rows = order[start : start + self._batch]
            found = self._run([tokens[at] for at in rows])
            if vectors is None:
                vectors = np.empty((len(texts), found.shape[1]), np.float32)
            vectors[rows] = found
        assert vectors is not None
        return vectors

    def _run(self, tokens: Sequence[Any]) -> npt.NDArray[np.float32]:
        rows = self._rows or len(tokens)
        length = self._length or max(1, max(len(each.ids) for each in tokens))
        given = {name: np.zeros((rows, length), np.int64) for name in _INPUTS}
        given["input_ids"][:] = self._pad[0]
        given["token_type_ids"][:] = self._pad[1]
        given["position_ids"][:] = np.arange(length)
        for row in range(rows):
            each = tokens[min(row, len(tokens) - 1)]  # a fixed number of rows is filled up with the last one
            given["input_ids"][row, : len(each.ids)] = each.ids
            given["attention_mask"][row, : len(each.ids)] = each.attention_mask
            given["token_type_ids"][row, : len(each.ids)] = each.type_ids
        try:
            (found,) = self._session.run(
                [self._output], {name: given[name].astype(dtype, copy=False) for name, dtype in self._inputs.items()}
            )
        except Exception as error:  # onnxruntime's errors have no class in common
            raise InvalidInput(f"{self.name} cannot be run: {one_line(error)}") from error
        found = np.asarray(found, np.float32)
        if found.ndim == 3 and found.shape[:2] == (rows, length):
            mask = given["attention_mask"]
            found = found[:, 0] if self.pooling == "cls" else _mean(found, mask)
        if found.ndim != 2 or len(found) != rows:
            raise InvalidInput(
                f"{self.name} gives {found.shape} for {rows} texts of {length} tokens: these are no vectors of texts"
            )
        pooled: npt.NDArray[np.float32] = found[: len(tokens)]
        return pooled


def _mean(tokens: npt.NDArray[np.float32], mask: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """(n, length, dim), (n, length) -> (n, dim). Zeros are what is padding: NaN times zero would be NaN."""
    kept = mask[:, :, None] != 0
    sums = np.where(kept, tokens, np.float32(0)).sum(axis=1, dtype=np.float64)
    mean: npt.NDArray[np.float32] = (sums / np.maximum(kept.sum(axis=1), 1)).astype(np.float32)
    return mean


def _loaded(path: Path, load: Any) -> Any:
    try:
        return load(str(path))
    except Exception as error:  # the libraries' errors have no class in common
        raise InvalidInput(f"{path} cannot be read: {one_line(error)}") from error


def _output_of(outputs: Sequence[Any], model: Path) -> str:
    """The vectors of texts if the model gives them, else those of tokens."""
    axes: dict[str, int] = {
        each.name: len(each.shape) if each.shape else 0 for each in outputs if each.type.startswith("tensor(float")
    }
    for name in ("sentence_embedding", "token_embeddings", "last_hidden_state"):
        if name in axes:
            return name
    for name, count in axes.items():
        if count in (2, 3):
            return name
    raise InvalidInput(f"{model} is no model of texts: it gives {', '.join(each.name for each in outputs)}")


def _contains(path: Path, words: Sequence[bytes]) -> list[bool]:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return [data.find(word) >= 0 for word in words]


def _rescales(model: Path) -> bool:
    """Whether an operator is in it that scales a whole batch by its largest number."""
    return _contains(model, [b"DynamicQuantize"])[0]


def _parts_of(model: Path) -> list[Path]:
    """The model and the files that hold its large weights: their names are written in it, so a search finds them all."""
    others = sorted(path for path in model.parent.rglob("*") if path.is_file() and path != model)
    named = _contains(model, [path.name.encode() for path in others])
    return [model, *(path for path, is_named in zip(others, named, strict=True) if is_named)]


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        said = json.loads(path.read_bytes())
    except ValueError as error:
        raise InvalidInput(f"{path} is no JSON: {one_line(error)}") from error
    return said if isinstance(said, dict) else {}


def _max_length(folder: Path, of_tokenizer: int | None) -> int:
    """The least of the limits that files of the folder state."""
    config = _json(folder / "config.json")
    positions = config.get("max_position_embeddings")
    if isinstance(positions, int) and config.get("model_type") in _OFFSET:
        padding = config.get("pad_token_id")
        positions -= (padding if isinstance(padding, int) else 1) + 1
    said = [
        positions,
        _json(folder / "sentence_bert_config.json").get("max_seq_length"),
        _json(folder / "tokenizer_config.json").get("model_max_length"),
        of_tokenizer,
    ]
    limits = [int(each) for each in said if isinstance(each, int | float) and 0 < each < _UNBOUNDED]
    return min(limits, default=_UNKNOWN)


def _pooling(folder: Path) -> str:
    """ "mean", unless the folder was made by sentence-transformers and says otherwise."""
    said = _json(folder / "1_Pooling" / "config.json")
    if isinstance(said.get("pooling_mode"), str):
        return str(said["pooling_mode"])
    modes = [key.removeprefix("pooling_mode_") for key, value in said.items() if key.startswith("pooling_mode_") and value]
    named = {"mean_tokens": "mean", "cls_token": "cls"}
    return "+".join(named.get(mode, mode) for mode in modes) or "mean"
