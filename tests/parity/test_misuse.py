"""`tests/vecdb/test_misuse.py` on the clients."""

import runpy
from pathlib import Path

BENEATH: dict[str, str] = {
    "test_databases_and_collections_are_containers": "a repr asks no server",
    "test_a_path_that_cannot_be_a_database_is_named": "of paths",
}

globals().update(runpy.run_path(str(Path(__file__).parent / "borrow.py"))["tests_of"]("test_misuse.py", BENEATH))
