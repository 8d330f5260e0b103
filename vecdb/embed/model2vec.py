"""Static embeddings by model2vec: a vector for each token and their mean. The fastest of the local models, in NumPy alone.

A text of which the model knows no token gets a vector of zeros, which a field with metric "cosine" refuses. A Model2Vec is
safe in any thread: they take turns, because the library sets up its tokenizer anew for each call.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ..errors import InvalidInput, NotFound
from .models import Fingerprint, label, library, local_folder, one_line, tokenizer_text

_MAX_LENGTH = 512  # tokens, in versions of the library in which a model does not say


class Model2Vec:
    """model: a name on the Hugging Face hub, such as "minishlab/potion-base-8M", or a folder.

    A name is downloaded by the library when it is not in its cache; for a folder nothing is. Raises NotFound, InvalidInput,
    Unsupported.
    """

    def __init__(self, model: str | os.PathLike[str]) -> None:
        library_ = library("model2vec", "model2vec")
        folder = local_folder(model)
        self.name = label("model2vec", model)
        try:
            # force_download is the library's default, and asks the hub each time
            loaded = library_.StaticModel.from_pretrained(model if folder is None else folder, force_download=False)
        except Exception as error:  # of four libraries, which have no class in common
            if folder is None:
                raise NotFound(f"the model {model!r} cannot be had from the hub: {one_line(error)}") from error
            raise InvalidInput(f"{model} is no model of model2vec: {one_line(error)}") from error
        self._model = loaded
        self._lock = threading.Lock()
        self.dim = int(loaded.embedding.shape[1])
        hashed = Fingerprint()
        for part in ("embedding", "weights", "token_mapping"):
            array = getattr(loaded, part, None)
            if array is not None:
                hashed.add(f"{part} {array.dtype} {array.shape}", np.ascontiguousarray(array).view(np.uint8))
        hashed.add("tokenizer", tokenizer_text(loaded.tokenizer))
        hashed.add_settings("settings", [bool(loaded.normalize), getattr(loaded, "max_length", _MAX_LENGTH)])
        self.fingerprint = hashed.done()

    def __repr__(self) -> str:
        return f"Model2Vec({self.name.removeprefix('model2vec:')!r}, dim={self.dim})"

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """(n,) texts -> (n, dim) float32."""
        if not len(texts):
            return np.zeros((0, self.dim), np.float32)
        with self._lock:
            # Its own threads would set an environment variable of the whole process.
            return np.asarray(self._model.encode(list(texts), use_multiprocessing=False), np.float32)
