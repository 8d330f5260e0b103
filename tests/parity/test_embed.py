"""`tests/vecdb/test_embed.py` on the clients."""

import runpy
from pathlib import Path

BENEATH: dict[str, str] = {
    "test_an_encoder_file_is_verified_and_a_leftover_one_is_deleted": "looks at files",
    "test_a_fit_whose_commit_fails_leaves_nothing": "looks at what is known inside",
    "test_an_interrupt_does_not_delete_an_encoder_that_is_committed_after_it": "looks at what is known inside",
}

globals().update(runpy.run_path(str(Path(__file__).parent / "borrow.py"))["tests_of"]("test_embed.py", BENEATH))
