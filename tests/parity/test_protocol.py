"""The three ways to a database have the same methods with the same arguments; and the clients add nothing that is not there."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

import vecdb
from vecdb import api
from vecdb.client.blocking import RemoteCollection, RemoteDatabase
from vecdb.client.collection import AsyncCollection
from vecdb.client.database import AsyncDatabase

CLASSES = [
    (api.Database, vecdb.Database),
    (api.Database, RemoteDatabase),
    (api.Database, AsyncDatabase),
    (api.Collection, vecdb.Collection),
    (api.Collection, RemoteCollection),
    (api.Collection, AsyncCollection),
]
# What no coroutine can be, with what stands for it.
WITHOUT_LOOP = {"__getitem__", "__contains__", "__iter__", "__len__", "__enter__", "__exit__", "fields"}


def shape(method: Any) -> list[tuple[str, Any, Any]]:
    return [(each.name, each.kind, each.default) for each in inspect.signature(method).parameters.values()]


@pytest.mark.parametrize(("protocol", "kind"), CLASSES, ids=lambda each: each.__name__)
@pytest.mark.parametrize("served", ["blocking"], indirect=True)
def test_methods_and_arguments_are_the_same(protocol: Any, kind: Any) -> None:
    names = [name for name, value in vars(protocol).items() if callable(value) or isinstance(value, property)]
    names = [name for name in names if not name.startswith("_") or name in WITHOUT_LOOP]
    assert len(names) > 18
    for name in names:
        if kind in (AsyncDatabase, AsyncCollection) and name in WITHOUT_LOOP:
            continue
        here = inspect.getattr_static(protocol, name)
        assert inspect.getattr_static(kind, name) is not None
        if isinstance(here, property) or (kind is AsyncDatabase and name == "import_hnswlib"):
            continue
        assert shape(getattr(kind, name)) == shape(here), f"{kind.__name__}.{name}"


@pytest.mark.parametrize("served", ["blocking"], indirect=True)
def test_clients_have_no_public_method_of_their_own() -> None:
    own = {
        "described",
        "send",
        "check_known",
        "embed_by_server",
        "known",
        "target",
        "over",
        "has",
    }  # between the clients' modules
    for protocol, kind in CLASSES:
        if kind in (vecdb.Database, vecdb.Collection):
            continue
        public = {name for name in vars(kind) if not name.startswith("_")}
        assert public - own <= set(vars(protocol)), kind
