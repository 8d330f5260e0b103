"""LanceDB's bulk path: a table made of a stream of record batches; then every file is synced, as vecdb's are."""

import json
import os
import sys
import time

sys.path.pop(0)  # this folder has a lancedb.py of its own
import lancedb
import pyarrow.parquet as pq


def main(path, target, _rows):
    started = time.perf_counter()
    file = pq.ParquetFile(path)
    lancedb.connect(target).create_table("docs", data=file.iter_batches(65_536), schema=file.schema_arrow)
    for folder, _, names in os.walk(target):
        for name in [*names, "."]:
            fd = os.open(os.path.join(folder, name), os.O_RDONLY)
            os.fsync(fd)
            os.close(fd)
    print(json.dumps({"seconds": time.perf_counter() - started}))


main(*sys.argv[1:])
