"""Encoders by name, as a command line and a configuration say them: `encoder_of("tfidf")`.

A name is KIND, or KIND:WHAT. Each kind but the first is an adapter in a file of its own, behind an extra, and is imported when
it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from ..errors import InvalidInput
from . import TFIDF, Encoder

# kind -> module, class, what stands after the colon
ADAPTERS = {
    "sentence-transformers": ("sentence_transformers", "SentenceTransformers", "a model's name or folder"),
    "onnx": ("onnx", "Onnx", "a folder with model.onnx and tokenizer.json"),
    "model2vec": ("model2vec", "Model2Vec", "a model's name or folder"),
    "openai": ("openai", "OpenAI", "a model's name"),
}


def encoder_of(name: str) -> str | Encoder:
    """What `create_collection(…, embed=)` and `collection(…, embed=)` take. Raises InvalidInput, Unsupported, StorageError."""
    if name == TFIDF:
        return name
    kind, colon, what = name.partition(":")
    if kind not in ADAPTERS or not colon or not what:
        known = ", ".join([TFIDF, *(f"{each}:{said[2].split()[-1].upper()}" for each, said in ADAPTERS.items())])
        raise InvalidInput(f"no encoder is called {name!r}; there are: {known}")
    module, class_name, _ = ADAPTERS[kind]
    made: Callable[[str], Encoder] = getattr(import_module("." + module, __package__), class_name)
    return made(what)
