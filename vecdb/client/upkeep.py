"""Long work on a server, with its progress: verify and vacuum; and what names a server may give to files of a backup."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..errors import VecdbError
from ..wire import convert, messages
from .channel import Channel

if TYPE_CHECKING:
    from vecdb_storage.vacuum import Vacuumed
    from vecdb_storage.verify import Report


async def verify(channel: Channel, target: Any, repair: bool, progress: Callable[[int, int], None] | None) -> Report:
    """Raises what the server raised."""
    from vecdb_storage.verify import Report

    report: Report | None = None
    async for reply in channel.stream("Admin/Verify", messages.VerifyRequest(target=target, repair=repair)):
        if reply.HasField("report"):
            report = convert.from_figures(reply.report, Report)
        elif progress is not None:
            progress(reply.progress.done, reply.progress.total)
    assert report is not None
    return report


async def vacuum(channel: Channel, target: Any, progress: Callable[[int, int], None] | None) -> Vacuumed:
    from vecdb_storage.vacuum import Vacuumed

    vacuumed: Vacuumed | None = None
    async for reply in channel.stream("Admin/Vacuum", messages.VacuumRequest(target=target)):
        if reply.HasField("vacuumed"):
            vacuumed = convert.from_figures(reply.vacuumed, Vacuumed)
        elif progress is not None:
            progress(reply.progress.done, reply.progress.total)
    assert vacuumed is not None
    return vacuumed


def safe_name(path: str) -> str:
    """A relative name that a server may give to a file. Raises VecdbError."""
    parts = path.split("/")
    if not path or os.path.isabs(path) or any(part in ("", ".", "..") for part in parts) or "\\" in path:
        raise VecdbError(f"the server names a file {path!r}, which is not a file of a backup")
    return path
