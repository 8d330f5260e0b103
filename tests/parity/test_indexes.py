"""`tests/vecdb/test_indexes.py` on the clients, the blocking one."""

import runpy
from pathlib import Path

import pytest

BENEATH: dict[str, str] = {
    "test_points_that_go_and_come_again_are_found_as_in_a_new_collection": "asks indexes by their effort",
    "test_what_a_backend_trained_comes_back_and_one_that_is_not_registered_costs_no_answer": "a server keeps its indexes open",
    "test_indexes_outlive_a_reopen_and_serve_readers": "opens read-only",
    "test_a_damaged_index_costs_no_answer_and_is_built_again": "damages files of a closed database",
    "test_a_calibration_on_own_queries_is_outgrown_and_measured_again": "looks at what is known inside",
    "test_with_several_segments_whole_searches_are_measured_and_deliver_what_is_asked": "looks at what is known inside",
    "test_more_recall_than_an_index_was_seen_to_reach_is_got_by_an_exact_search": "looks at what is known inside",
    "test_an_index_can_be_changed_and_rebuilt_on_a_live_collection": "looks at what is known inside",
    "test_rows_in_memory_that_take_searches_long_become_a_segment_with_an_index": "looks at who asks for a flush",
    "test_builds_leave_a_core_to_searches_and_take_it_back": "looks at what is known inside",
    "test_small_segments_beside_large_ones_do_not_outgrow_what_was_measured": "looks at what is known inside",
    "test_a_flush_waits_for_indexes_of_segments_that_are_about_to_be_merged": "makes a merge late inside",
    "test_a_flush_does_not_wait_for_what_is_written_after_it": "looks at what is known inside",
    "test_a_short_build_comes_between_the_steps_of_a_long_one": "looks at what is built inside",
}

globals().update(runpy.run_path(str(Path(__file__).parent / "borrow.py"))["tests_of"]("test_indexes.py", BENEATH))

pytestmark = pytest.mark.parametrize("served", ["blocking"], indirect=True)
