"""Encoders by name, as a command line and a configuration say them: `encoder_of("tfidf")`.

A name is that of a built-in encoder, or KIND:WHAT. Each kind is an adapter in a file of its own, behind an extra, and is
imported when it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from ..errors import InvalidInput
from . import BUILT_IN, Encoder

# kind -> module, class, what stands after the colon, and that in words
ADAPTERS = {
    "sentence-transformers": ("sentence_transformers", "SentenceTransformers", "MODEL", "a model's name or folder"),
    "onnx": ("onnx", "Onnx", "FOLDER", "a folder with model.onnx and tokenizer.json"),
    "model2vec": ("model2vec", "Model2Vec", "MODEL", "a model's name or folder"),
    "splade": ("splade", "Splade", "FOLDER", "a folder with model.safetensors and tokenizer.json"),
    "openai": ("openai", "OpenAI", "MODEL", "a model's name"),
}


def encoder_of(name: str) -> str | Encoder:
    """What `create_collection(…, embed=)` and `collection(…, embed=)` take.

    Raises InvalidInput, and what the adapter does: NotFound, Unsupported.
    """
    if name in BUILT_IN:
        return name
    kind, _, what = name.partition(":")
    if kind not in ADAPTERS:
        known = ", ".join([*BUILT_IN, *(f"{each}:{said[2]}" for each, said in ADAPTERS.items())])
        raise InvalidInput(f"no encoder is called {name!r}; there are: {known}")
    module, class_name, word, meaning = ADAPTERS[kind]
    if not what.strip():
        raise InvalidInput(f"which one? Say {kind}:{word}, {meaning}")
    made: Callable[[str], Encoder] = getattr(import_module("." + module, __package__), class_name)
    return made(what)


def same_kind(name: str, other: str) -> bool:
    """Whether two names may belong to one encoder.

    Fingerprints of adapters say all that decides their vectors, and what stands after the colon is for people: a folder that
    was moved, or a model from a hub that is now in a folder, is the model that it was.
    """
    kind = name.partition(":")[0]
    return name == other or (kind in ADAPTERS and kind == other.partition(":")[0])
