"""LanceDB: an IVF_HNSW_SQ index, a B-tree for each attribute, and a filter before the search; many queries in one call.

Built by as many threads as it likes, searched on one core. setting: way, "index" or "flat"; ef and refine of the index.
"""

import os
import sys

here = sys.path.pop(0)  # this folder has a lancedb.py of its own

import lancedb  # noqa: E402
import numpy as np  # noqa: E402
import pyarrow as pa  # noqa: E402
from lancedb.index import BTree, HnswSq  # noqa: E402

sys.path.append(here)

from protocol import serve_filtered  # noqa: E402


def build(folder, base, metric, attributes):
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(base.reshape(-1)), base.shape[1])
    rows = pa.table({"id": np.arange(len(base)), "vector": vectors, **attributes})
    table = lancedb.connect(f"{folder}/lancedb").create_table("docs", rows)
    for name in attributes:
        table.create_index(name, config=BTree())
    table.create_index("vector", config=HnswSq(distance_type=metric))
    core = sorted(os.sched_getaffinity(0))[:1]
    for thread in os.listdir("/proc/self/task"):  # fewer threads of its own make it stand still, so all share a core
        os.sched_setaffinity(int(thread), core)
    return table, metric


def filter_of(index, attribute, values, below):
    return f"{attribute} < {below}"


def search(index, queries, where, setting):
    table, metric = index
    asked = table.search(queries if len(queries) > 1 else queries[0]).distance_type(metric).limit(10)
    asked = asked.where(where, prefilter=True).select(["id", "_distance"])
    if setting["way"] == "flat":
        asked = asked.bypass_vector_index()
    if "ef" in setting:
        asked = asked.ef(setting["ef"])
    if "refine" in setting:
        asked = asked.refine_factor(setting["refine"])
    answer = asked.to_arrow()
    ids = answer["id"].to_numpy()
    numbers = answer["query_index"].to_numpy() if "query_index" in answer.column_names else np.zeros(len(ids), int)
    found = np.full((len(queries), 10), -1)
    for number, row in enumerate(found):
        mine = ids[numbers == number][:10]
        row[: len(mine)] = mine
    return found


serve_filtered(build, filter_of, search)
