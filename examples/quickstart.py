"""Ten lines: a collection, some points, a search with a filter."""

import numpy as np

import vecdb
from vecdb import Dense, F

rng = np.random.default_rng(0)
with vecdb.open(":memory:") as db:
    docs = db.create_collection("docs", Dense(384, metric="cosine"))
    vectors = rng.standard_normal((1000, 384))
    docs.upsert(ids=range(1000), vectors=vectors, payloads=[{"year": 2000 + i % 25} for i in range(1000)])
    for hit in docs.search(vectors[7], k=3, where=F("year") <= 2010):
        print(hit.id, round(hit.score, 3), hit.payload)
