"""The disk itself: the same bytes, appended and synced by fdatasync, batch by batch."""

import json
import os

from data import ingest


def opened(path):
    os.makedirs(path)
    fd = os.open(os.path.join(path, "log"), os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    ready = {}

    def write(ids, x, payloads):
        # The bytes are joined ahead: only the disk is timed.
        for part in ready.pop(ids[0]):
            view = memoryview(part)
            while len(view):
                view = view[os.write(fd, view) :]
        os.fdatasync(fd)

    def prepare(batches):
        for ids, x, payloads in batches:
            text = "".join(ids).encode() + b"".join(json.dumps(p, separators=(",", ":")).encode() for p in payloads)
            ready[ids[0]] = (memoryview(x).cast("B"), text)

    opened.prepare = prepare
    return write, lambda: os.close(fd)


if __name__ == "__main__":
    ingest("fdatasync per batch", opened)
