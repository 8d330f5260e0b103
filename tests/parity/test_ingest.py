"""`tests/vecdb/test_ingest.py` on the clients, the blocking one."""

import runpy
from pathlib import Path

import pytest

BENEATH: dict[str, str] = {
    "test_an_ingest_that_is_stopped_leaves_no_file_of_what_was_on_its_way": "looks at files",
    "test_long_lines_and_bombs_are_bounded": "of reading files",
}

globals().update(runpy.run_path(str(Path(__file__).parent / "borrow.py"))["tests_of"]("test_ingest.py", BENEATH))

pytestmark = pytest.mark.parametrize("served", ["blocking"], indirect=True)
