"""What a score says: the metric's own, its, surprise and likelihood, of a question that has an answer and of one that has none.

pip install vecdb
python how_near.py
"""

from __future__ import annotations

import numpy as np

import vecdb
from vecdb import Dense
from vecdb.index import MIB

TOPICS, ROWS, DIM = 400, 8000, 256


def main() -> None:
    rng = np.random.default_rng(0)
    topics = rng.standard_normal((TOPICS, DIM))
    vectors = topics[rng.integers(0, TOPICS, ROWS)] + 0.8 * rng.standard_normal((ROWS, DIM))
    questions = {
        "of a point": vectors[42] + 0.4 * rng.standard_normal(DIM),
        "of a topic": topics[7] + 0.8 * rng.standard_normal(DIM),
        "of nothing that is here": rng.standard_normal(DIM),
    }
    with vecdb.open(":memory:") as db:
        docs = db.create_collection("docs", Dense(DIM, index=MIB()))
        docs.upsert(ids=range(ROWS), vectors=vectors)
        docs.flush()  # waits for the bits
        for name, question in questions.items():
            print(f"A question {name}")
            print("  point  cosine    its  band                 surprise  likelihood")
            columns = [docs.search(question, 3, exact=True, score=score) for score in (None, "its", "surprise", "likelihood")]
            for own, its, surprise, likelihood in zip(*columns, strict=True):
                print(
                    f"  {own.id:5}  {own.score:6.3f}  {its.score:5.3f}  {its.label:19}  {surprise.score:8.1f}  "
                    f"{likelihood.score:10.3f}"
                )
        # A similarity says nothing by itself; surprise is in bits, of any query and collection: ten are one chance in a thousand.
        for name, question in questions.items():
            found = docs.search(question, 3, exact=True, score="surprise", score_threshold=10)
            print(f"{name}: {found.ids if found.ids else 'nothing is surprisingly near'}")


if __name__ == "__main__":
    main()
