"""Texts with an encoder of your own: any object with `name`, `fingerprint`, `dim` and `encode(texts)`.

Here it counts letters. Wrapped around a model it looks the same; the fingerprint then names the model and its version.
"""

from collections.abc import Sequence

import numpy as np

import vecdb


class Letters:
    name, fingerprint, dim = "letters", "v1", 26

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        return np.array([[0.01 + text.lower().count(chr(97 + i)) for i in range(26)] for text in texts], np.float32)


with vecdb.open(":memory:") as db:
    words = db.create_collection("words", embed=Letters())
    words.upsert(texts=["listen", "enlist", "google", "silent", "elgoog", "banana"])
    for hit in words.search("inlets", k=4):
        print(f"{hit.score:.3f}", hit.payload["text"])
