"""`tests/vecdb/test_sparse.py` on the clients."""

import runpy
from pathlib import Path

BENEATH: dict[str, str] = {
    "test_a_splade_model_finds_known_items": "opens by itself, and is slow",
    "test_a_matrix_comes_in_and_goes_out": "ingests files, which test_ingest.py does on clients",
    "test_data_sets_of_seismic": "likewise",
    "test_json_lines_by_components_pairs_and_tokens": "likewise",
    "test_damaged_offsets_are_told_and_the_rest_is_repaired": "damages files",
}

globals().update(runpy.run_path(str(Path(__file__).parent / "borrow.py"))["tests_of"]("test_sparse.py", BENEATH))
