"""Milvus standalone, the binary that the package `milvus` ships, over gRPC. setting: ef."""

import sys

from calling import main
from milvus_calls import connect, load


def serve(folder, port, arguments):
    sys.path.pop(0)  # this folder has a milvus.py of its own
    from milvus import MilvusServer

    server = MilvusServer(wait_for_started=True)
    server.set_base_dir(f"{folder}/data")
    server.config.set("proxy_port", port)
    server.config.update(proxy_port=port)
    server.start()
    sys.exit(server.server_proc.wait())


main(serve, load, connect)
