"""Any model of the sentence-transformers library, with torch beneath: the widest choice, and the largest install.

A SentenceTransformers is safe in any thread: they take turns, because the library sets up its tokenizer anew for each call.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import InvalidInput, NotFound
from .models import Fingerprint, label, library, local_folder, one_line, tokenizer_text

_BATCH = 32
_NOT_THE_MODEL = {"_name_or_path", "transformers_version", "architectures", "torch_dtype", "dtype"}  # of a configuration


class SentenceTransformers:
    """model: a name on the Hugging Face hub, such as "sentence-transformers/all-MiniLM-L6-v2", or a folder.

    A name is downloaded by the library when it is not in its cache; for a folder nothing is, and code that comes with a model
    is never run. device: such as "cpu" or "cuda"; default: the library's choice. Raises NotFound, InvalidInput, Unsupported.
    """

    def __init__(self, model: str | os.PathLike[str], *, device: str | None = None) -> None:
        library_ = library("sentence_transformers", "sentence-transformers")
        folder = local_folder(model)
        self.name = label("sentence-transformers", model)
        try:
            loaded = library_.SentenceTransformer(
                str(model if folder is None else folder), device=device, local_files_only=folder is not None
            )
        except Exception as error:  # of several libraries, which have no class in common
            if folder is None:
                raise NotFound(f"the model {model!r} cannot be had from the hub: {one_line(error)}") from error
            raise InvalidInput(f"{model} is no model of sentence-transformers: {one_line(error)}") from error
        self._model = loaded
        self._lock = threading.Lock()
        self.fingerprint = _fingerprint(loaded)
        self.dim = -1
        self.dim = self.encode(["a"]).shape[1]  # a model that cannot run says so now

    def __repr__(self) -> str:
        return f"SentenceTransformers({self.name.partition(':')[2]!r}, dim={self.dim})"

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """(n,) texts -> (n, dim) float32."""
        if not len(texts):
            return np.zeros((0, self.dim), np.float32)
        with self._lock:
            found = self._model.encode(list(texts), batch_size=_BATCH, show_progress_bar=False, convert_to_numpy=True)
        return np.asarray(found, np.float32)


def _fingerprint(model: Any) -> str:
    """Of what is in memory, so that a model from the hub and its copy in a folder are the same."""
    torch = library("torch", "sentence-transformers")
    hashed = Fingerprint()
    for number, module in enumerate(model):
        hashed.add_settings(f"module {number}", [type(module).__name__, _settings(module)])
    for name, tensor in sorted(model.state_dict().items()):
        data = tensor.detach().cpu().contiguous()
        hashed.add(f"{name} {data.dtype} {tuple(data.shape)}", data.reshape(-1).view(torch.uint8).numpy())
    tokenizer: Any = getattr(model, "tokenizer", None)
    backend: Any = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if hasattr(backend, "to_str"):
        hashed.add("tokenizer", tokenizer_text(backend))
    elif hasattr(tokenizer, "get_vocab"):  # the library's own, of words
        hashed.add_settings("tokenizer", [type(tokenizer).__name__, tokenizer.get_vocab()])
    prompts = getattr(model, "prompts", None), getattr(model, "default_prompt_name", None)
    hashed.add_settings("settings", [model.max_seq_length, model.truncate_dim, prompts])
    return hashed.done()


def _settings(module: Any) -> dict[str, Any]:
    """What a module says of itself, without what tells only where and by which version it was loaded."""
    said = dict(module.get_config_dict()) if hasattr(module, "get_config_dict") else {}
    inner = getattr(getattr(module, "auto_model", None), "config", None)
    if inner is not None:
        said["model"] = {key: value for key, value in inner.to_diff_dict().items() if key not in _NOT_THE_MODEL}
    return said
