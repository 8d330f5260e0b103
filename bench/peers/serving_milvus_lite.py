"""Milvus Lite's server, `milvus-lite server`, over gRPC. setting: ef."""

import os
import sys

from calling import main
from milvus_calls import connect, load


def serve(folder, port, arguments):
    program = os.path.join(os.path.dirname(sys.executable), "milvus-lite")
    os.execv(
        program, [program, "server", "--data-dir", f"{folder}/data", "--host", "127.0.0.1", "--port", str(port), *arguments]
    )


main(serve, load, connect)
