"""Exact terms and meaning together: one text in a field of BM25 weights and in a dense one, searched by both.

pip install "vecdb[text]"
python hybrid_search.py
"""

from __future__ import annotations

import inspect
import json
import os
import random
import re
import statistics
import string
import tempfile

import vecdb
from vecdb import Dense, Sparse
from vecdb.embed.bm25 import Bm25
from vecdb.embed.tfidf import Tfidf


def passages() -> dict[str, str]:
    """What Python's own library says of its functions."""
    found = {}
    for module in (inspect, json, os, os.path, random, re, statistics, string, tempfile):
        for name, value in sorted(vars(module).items()):
            text = inspect.getdoc(value) if inspect.isroutine(value) or inspect.isclass(value) else None
            if text and len(text) > 40:
                found[f"{module.__name__}.{name}"] = text
    return found


def main() -> None:
    texts = passages()
    words, meaning = Bm25.fit(list(texts.values())), Tfidf.fit(list(texts.values()), 128)
    with vecdb.open(":memory:") as db:
        docs = db.create_collection("docs", {"words": Sparse(), "meaning": Dense(128)})
        docs.upsert(
            ids=list(texts),
            vectors={"words": words.encode(list(texts.values())), "meaning": meaning.encode(list(texts.values()))},
            payloads=[{"text": text.partition("\n")[0]} for text in texts.values()],
        )
        for query in ("shuffle a list in place", "fnmatch regular expression", "the middle value of data"):
            print(query)
            asked = {"words": words.encode_queries([query])[0], "meaning": meaning.encode([query])[0]}
            for hit in docs.search_hybrid(asked, k=3):
                print(f"  {hit.score:.4f}  {hit.id}: {hit.payload['text'][:70]}")


if __name__ == "__main__":
    main()
