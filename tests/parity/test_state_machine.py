"""`tests/vecdb/test_state_machine.py` on the clients: a server beside a dict."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test


@pytest.mark.parametrize("model", ["Model", "SparseModel"])
def test_the_clients_agree_with_a_dict(served: Any, model: str) -> None:
    file = Path(__file__).parent.parent / "vecdb" / "test_state_machine.py"
    specification = importlib.util.spec_from_file_location("parity_model", file)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    fewer = settings(max_examples=15, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck))
    run_state_machine_as_test(getattr(module, model), settings=fewer)
