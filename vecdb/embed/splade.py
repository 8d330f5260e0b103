"""SPLADE by NumPy: a folder with a masked-language model of BERT's shape (model.safetensors) and its tokenizer.json.

A text's vector has a weight for each token of the vocabulary: log(1 + relu(x)), x being the most that the model gives that
token at any place of the text (Formal et al., "SPLADE v2", arXiv 2109.10086). Queries go through the same model. Nothing is
downloaded, and neither torch nor an ONNX runtime is needed. Texts are truncated to what the model can take, and run one by one,
so that a text gets the same vector in any company. A Splade is safe in any thread.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from vecdb_storage.vectors import SparseVectors

from ..errors import InvalidInput, NotFound
from .models import Fingerprint, label, library, local_folder, one_line

_LONGEST = 512  # tokens, where the model has more positions
_COLUMNS = 2048  # of the vocabulary at a time, which bounds memory


class Splade:
    """folder: with model.safetensors, tokenizer.json and, for the number of attention heads, config.json.

    max_length: tokens, instead of the model's own maximum. Raises NotFound, InvalidInput, Unsupported.
    """

    dim = None  # its vectors are sparse

    def __init__(self, folder: str | os.PathLike[str], *, max_length: int | None = None) -> None:
        safetensors, tokenizers = library("safetensors.numpy", "splade"), library("tokenizers", "splade")
        at = local_folder(Path(folder) if str(folder).strip() else folder)
        assert at is not None
        for name in ("model.safetensors", "tokenizer.json"):
            if not (at / name).is_file():
                raise NotFound(f"{folder} has no {name}")
        self.name = label("splade", at)
        try:
            weights = safetensors.load_file(at / "model.safetensors")
            self._tokenizer = tokenizers.Tokenizer.from_file(str(at / "tokenizer.json"))
            config = json.loads((at / "config.json").read_text()) if (at / "config.json").is_file() else {}
        except Exception as error:
            raise InvalidInput(f"{folder} cannot be read: {one_line(error)}") from error
        try:
            self._model = _Bert(weights, config)
        except KeyError as error:
            raise InvalidInput(f"{folder} is no masked-language model of BERT's shape: it has no {error}") from None
        most = min(_LONGEST, self._model.positions)
        self.max_length = most if max_length is None else max_length
        if not self._tokenizer.num_special_tokens_to_add(False) < self.max_length <= most:
            raise InvalidInput(f"{folder}: max_length is at most the model's {most}, and leaves room for a token")
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(self.max_length)
        hashed = Fingerprint()
        for name in ("model.safetensors", "tokenizer.json"):
            hashed.add_file(name, at / name)
        hashed.add_settings("settings", ["splade", 1, self.max_length, self._model.heads, self._model.epsilon])
        self.fingerprint = hashed.done()

    def __repr__(self) -> str:
        return f"Splade({self.name.partition(':')[2]!r})"

    def encode(self, texts: Sequence[str]) -> SparseVectors:
        """Components are the vocabulary's token ids."""
        offsets, indices, weights = [0], [np.zeros(0, np.uint32)], [np.zeros(0, np.float32)]
        for text in texts:
            vector = self._model.weights_of(self._tokenizer.encode(text).ids)
            kept = np.flatnonzero(vector)
            offsets.append(offsets[-1] + len(kept))
            indices.append(kept.astype(np.uint32))
            weights.append(vector[kept])
        return SparseVectors(np.array(offsets, np.uint64), np.concatenate(indices), np.concatenate(weights))

    def token(self, component: int) -> str | None:
        """What a component stands for."""
        found: str | None = self._tokenizer.id_to_token(component)
        return found


class _Bert:
    """The encoder and the language-model head, by the names that checkpoints give their arrays."""

    def __init__(self, weights: dict[str, Any], config: dict[str, Any]) -> None:
        """Raises KeyError naming an array that is missing."""
        self._weights = {name.removeprefix("bert."): array.astype(np.float32) for name, array in weights.items()}
        self._words = self._weights["embeddings.word_embeddings.weight"]
        self._places = self._weights["embeddings.position_embeddings.weight"]
        self._kind = self._weights["embeddings.token_type_embeddings.weight"][0]
        self._bias = self._weights["cls.predictions.bias"]
        self.positions, width = self._places.shape
        layers = {name.split(".")[2] for name in self._weights if name.startswith("encoder.layer.")}
        self._layers = [f"encoder.layer.{number}." for number in sorted(layers, key=int)]
        self.heads = int(config.get("num_attention_heads", max(1, width // 64)))
        self.epsilon = float(config.get("layer_norm_eps", 1e-12))
        self._size = width // self.heads
        for layer in self._layers:
            for part in ("attention.self.query", "attention.output.dense", "intermediate.dense", "output.dense"):
                self._weights[f"{layer}{part}.weight"]
        self._weights["cls.predictions.transform.dense.weight"]

    def weights_of(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        """(vocabulary,) float32, 0 where a token has no weight."""
        x = self._words[tokens] + self._places[: len(tokens)] + self._kind
        x = self._normed(x, "embeddings.LayerNorm")
        for layer in self._layers:
            x = self._layer(x, layer)
        x = _gelu(self._linear(x, "cls.predictions.transform.dense"))
        x = self._normed(x, "cls.predictions.transform.LayerNorm")
        most = np.empty(len(self._words), np.float32)
        for start in range(0, len(most), _COLUMNS):
            most[start : start + _COLUMNS] = (x @ self._words[start : start + _COLUMNS].T).max(axis=0)
        weights: npt.NDArray[np.float32] = np.log1p(np.maximum(most + self._bias, 0))
        return weights

    def _layer(self, x: npt.NDArray[np.float32], layer: str) -> npt.NDArray[np.float32]:
        query, key, value = (
            self._linear(x, f"{layer}attention.self.{part}").reshape(len(x), self.heads, self._size).transpose(1, 0, 2)
            for part in ("query", "key", "value")
        )
        scores = query @ key.transpose(0, 2, 1) / np.float32(self._size**0.5)
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        seen = (scores / scores.sum(axis=-1, keepdims=True)) @ value
        mixed = self._linear(seen.transpose(1, 0, 2).reshape(x.shape), layer + "attention.output.dense")
        x = self._normed(mixed + x, layer + "attention.output.LayerNorm")
        wide = _gelu(self._linear(x, layer + "intermediate.dense"))
        return self._normed(self._linear(wide, layer + "output.dense") + x, layer + "output.LayerNorm")

    def _linear(self, x: npt.NDArray[np.float32], name: str) -> npt.NDArray[np.float32]:
        product: npt.NDArray[np.float32] = x @ self._weights[name + ".weight"].T + self._weights[name + ".bias"]
        return product

    def _normed(self, x: npt.NDArray[np.float32], name: str) -> npt.NDArray[np.float32]:
        scale, shift = (
            self._weights.get(f"{name}.{new}", self._weights.get(f"{name}.{old}"))
            for new, old in (("weight", "gamma"), ("bias", "beta"))
        )
        if scale is None or shift is None:
            raise InvalidInput(f"the model has no {name}")
        centred = x - x.mean(axis=-1, keepdims=True)
        spread = np.sqrt((centred * centred).mean(axis=-1, keepdims=True) + np.float32(self.epsilon))
        normed: npt.NDArray[np.float32] = centred / spread * scale + shift
        return normed


def _gelu(x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """x times the normal distribution's share below it; erf by Abramowitz and Stegun 7.1.26, within 1.5e-7."""
    z = np.abs(x) * np.float32(0.5**0.5)
    t = 1 / (1 + np.float32(0.3275911) * z)
    series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    erf = 1 - series * np.exp(-z * z)
    made: npt.NDArray[np.float32] = (np.float32(0.5) * x * (1 + np.sign(x) * erf)).astype(np.float32)
    return made
