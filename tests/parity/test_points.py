"""`tests/vecdb/test_points.py` on the clients."""

import runpy
from pathlib import Path

BENEATH: dict[str, str] = {
    "test_closing_and_reading_only": "opens read-only",
}

globals().update(runpy.run_path(str(Path(__file__).parent / "borrow.py"))["tests_of"]("test_points.py", BENEATH))
