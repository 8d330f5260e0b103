"""The service `Admin`."""

from __future__ import annotations

import queue
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .. import __version__
from ..wire import convert, messages
from .collections import DONE
from .gate import Call
from .keys import ROLES
from .services import Answer, Served

BACKUPS = ".backup-"  # folders in the database's own, of backups that are being sent
_PIECE = 1 << 20
_TICK = 0.25  # seconds between two messages of progress


def hello(served: Served, call: Call, request: Any) -> Any:
    return messages.HelloReply(version=__version__, largest_message=served.config.largest_message, role=ROLES[call.key.role])


def stats(served: Served, call: Call, request: Any) -> Any:
    call.check_whole()
    return convert.to_figures(served.db.info(), messages.DatabaseStats)


def verify(served: Served, call: Call, request: Any) -> Iterator[Any]:
    target = served.asked(call, request.target)
    check: Any = served.db.verify if target is None else target.verify
    for done in _told(lambda progress: check(repair=request.repair, progress=progress)):
        if isinstance(done, tuple):
            yield messages.VerifyReply(progress=messages.Progress(done=done[0], total=done[1]))
        else:
            yield messages.VerifyReply(report=convert.to_figures(done, messages.VerifyReport))


def vacuum(served: Served, call: Call, request: Any) -> Iterator[Any]:
    target = served.asked(call, request.target)
    for done in _told((served.db if target is None else target).vacuum):
        if isinstance(done, tuple):
            yield messages.VacuumReply(progress=messages.Progress(done=done[0], total=done[1]))
        else:
            yield messages.VacuumReply(vacuumed=convert.to_figures(done, messages.Vacuumed))


def _told(work: Callable[[Callable[[int, int], None]], Any]) -> Iterator[Any]:
    """(done, total) from time to time while it works, and what it returns. It is finished also when nobody listens any more."""
    news: queue.SimpleQueue[Any] = queue.SimpleQueue()
    latest: list[tuple[int, int]] = []

    def run() -> None:
        try:
            news.put((True, work(lambda done, total: latest.append((done, total)))))
        except BaseException as error:
            news.put((False, error))

    threading.Thread(target=run, name="vecdb-admin", daemon=True).start()
    while True:
        try:
            right, found = news.get(timeout=_TICK)
        except queue.Empty:
            if latest:
                told = latest[-1]
                del latest[:-1]
                yield told
            continue
        if not right:
            raise found
        yield found
        return


def backup(served: Served, call: Call, request: Any) -> Iterator[Any]:
    """Links the files of one commit into a folder of the server's own, and sends them."""
    call.check_whole()
    folder = Path(tempfile.mkdtemp(prefix=BACKUPS, dir=served.config.db))
    try:
        made = served.db.backup(folder / "backup", link=True)
        files = sorted(path for path in (folder / "backup").rglob("*") if path.is_file())
        sent, total = 0, sum(path.stat().st_size for path in files)
        for path in files:
            name, left = str(path.relative_to(folder / "backup")), path.stat().st_size
            with open(path, "rb") as file:
                while True:
                    data = file.read(_PIECE)
                    sent, left = sent + len(data), left - len(data)
                    progress = messages.Progress(done=sent, total=total)
                    yield messages.BackupReply(path=name, data=data, progress=progress, last=left == 0)
                    if not left:
                        break
        yield messages.BackupReply(transaction=made.transaction)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def flush_all(served: Served, call: Call, request: Any) -> Any:
    call.check_whole()
    served.db.flush()
    return DONE


def pause_indexing(served: Served, call: Call, request: Any) -> Any:
    call.check_whole()
    served.db.pause_indexing()
    return DONE


def resume_indexing(served: Served, call: Call, request: Any) -> Any:
    call.check_whole()
    served.db.resume_indexing()
    return DONE


ANSWERS: dict[str, Answer] = {
    "Admin/Hello": hello,
    "Admin/Stats": stats,
    "Admin/Verify": verify,
    "Admin/Vacuum": vacuum,
    "Admin/Backup": backup,
    "Admin/FlushAll": flush_all,
    "Admin/PauseIndexing": pause_indexing,
    "Admin/ResumeIndexing": resume_indexing,
}
