"""Points that come from the files of other engines: `hnswlib` reads what `hnswlib.Index.save_index` wrote."""
