"""One suite for three ways to a database: the embedded API's own tests, on the clients. See `conftest.py`.

What is left out looks beneath the API (at the store, at files, at another process), and is so for the reason given beside it.
Run by path from the files of tests here, since they have the names of those that they borrow from.
"""

from __future__ import annotations

import importlib.util
import inspect
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent.parent / "vecdb"


def tests_of(file: str, without: dict[str, str]) -> dict[str, Any]:
    """Its tests and fixtures, under names that say whose they are."""
    name = f"parity_{file.removesuffix('.py')}"
    specification = importlib.util.spec_from_file_location(name, HERE / file)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module
    specification.loader.exec_module(module)
    # A fixture that is used by itself is private to its file, and yet its tests rely on it.
    found = {key: value for key, value in vars(module).items() if not key.startswith("_") or _is_fixture(value)}
    tests = {key for key in found if key.startswith("test_")}
    unknown = without.keys() - tests
    assert not unknown, f"{file} has no {unknown}"
    openers = {key for key, value in found.items() if inspect.isfunction(value) and "vecdb.open(" in inspect.getsource(value)}

    def opens(test: Any) -> bool:
        """Whether it has to do with a database; others say nothing about clients."""
        names = set(inspect.signature(test).parameters)
        body = inspect.getsource(test)
        return (
            bool(names & {"db", *filter(lambda n: _is_fixture(found.get(n)), names)})
            or "vecdb.open(" in body
            or any(f"{name}(" in body for name in openers)
        )

    mine = {key for key in tests - without.keys() if inspect.isclass(found[key]) or opens(found[key])}
    return {key: value for key, value in found.items() if key in mine or _is_fixture(value)}


def _is_fixture(value: Any) -> bool:
    return type(value).__name__ == "FixtureFunctionDefinition"
