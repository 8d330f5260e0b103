"""`tests/vecdb/test_filters.py` on the clients."""

import runpy
from pathlib import Path

BENEATH: dict[str, str] = {}

globals().update(runpy.run_path(str(Path(__file__).parent / "borrow.py"))["tests_of"]("test_filters.py", BENEATH))
