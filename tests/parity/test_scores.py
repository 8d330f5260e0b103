"""`tests/vecdb/test_scores.py` on the clients."""

import runpy
from pathlib import Path

BENEATH: dict[str, str] = {
    "test_the_command_line": "of the command line, which opens by itself",
}

globals().update(runpy.run_path(str(Path(__file__).parent / "borrow.py"))["tests_of"]("test_scores.py", BENEATH))
