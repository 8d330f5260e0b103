"""`tests/vecdb/test_filters.py` on the clients, the blocking one."""

import runpy
from pathlib import Path

import pytest

BENEATH: dict[str, str] = {
    "test_what_is_kept_of_rows_in_memory_stays_right_as_they_grow": "looks at what is known inside",
}

globals().update(runpy.run_path(str(Path(__file__).parent / "borrow.py"))["tests_of"]("test_filters.py", BENEATH))

pytestmark = pytest.mark.parametrize("served", ["blocking"], indirect=True)
