"""`tests/vecdb/test_search.py` on the clients."""

import runpy
from pathlib import Path

BENEATH: dict[str, str] = {
    "test_how_rows_are_spread_changes_nothing": "of the engine, which is the same",
}

globals().update(runpy.run_path(str(Path(__file__).parent / "borrow.py"))["tests_of"]("test_search.py", BENEATH))
