"""A server's programs in the benchmark of servers: itself, the load, and a process of clients that measures calls.

`python serving_NAME.py serve|load|keep|call FOLDER PORT [ARGUMENT …]`; the other side is `bench/serving.py`. NumPy only.

serve becomes the server. load prints {"seconds": …}. keep SETTING gives the collection a setting that it has from the next start of the server
on. call answers requests, one a line, each a dict:

    threads      so many clients, each in a thread and with a connection of its own
    setting      handed to the search
    seconds, at  closed loop for so long, from that moment on (seconds since the epoch)
    rate         calls a second of them all, at most: an open loop, as long as one of them is free
    each         instead: every query once, by one thread; found is the file of the ids, (m, 10), -1 for none

The answer has the seconds that it took, errors {name of exception: how many}, and calls, the file of (start, seconds) of those that
were answered.
"""

import collections
import json
import os
import sys
import threading
import time

import numpy as np

K = 10
BEHIND = 0.25  # seconds that an open loop makes up for


def main(serve, load, connect, keep=None):
    """serve(folder, port, arguments) becomes the server, or waits for it. load(folder, port, base) returns when searches are fast.

    connect(port, *arguments) -> search(query, setting) -> the ids of the 10 nearest; ids are row numbers. keep(port, setting).
    """
    verb, folder, port, *arguments = sys.argv[1:]
    if verb == "serve":
        serve(folder, int(port), arguments)
    elif verb == "load":
        base = np.load(f"{folder}/base.npy")
        started = time.perf_counter()
        load(folder, int(port), base)
        print(json.dumps({"seconds": time.perf_counter() - started}), flush=True)
    elif verb == "keep":
        keep(int(port), json.loads(arguments[0]))
    else:
        _call(folder, int(port), connect, arguments)


def _call(folder, port, connect, arguments):
    queries, searches = np.load(f"{folder}/queries.npy"), []
    print("{}", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        while len(searches) < request.get("threads", 1):
            searches.append(connect(port, *arguments))
        answer = (
            _each(folder, queries, searches[0], request) if "each" in request else _loop(folder, queries, searches, request)
        )
        print(json.dumps(answer), flush=True)


def _each(folder, queries, search, request):
    found, path = np.full((len(queries), K), -1), f"{folder}/found-{os.getpid()}.npy"
    started = time.perf_counter()
    for row, query in zip(found, queries, strict=True):
        ids = search(query, request["setting"])
        row[: len(ids)] = ids
    seconds = time.perf_counter() - started
    np.save(path, found)
    return {"seconds": seconds, "found": path}


def _loop(folder, queries, searches, request):
    calls, errors, setting = [], collections.Counter(), request["setting"]
    epoch = time.time() - time.perf_counter()
    begin = request["at"] - epoch
    end = begin + request["seconds"]
    due, turn = [begin], threading.Lock()

    def wait():
        """Until the next call is due, in an open loop: whichever client is free makes it."""
        with turn:
            due[0] = mine = max(due[0] + 1 / request["rate"], time.perf_counter() - BEHIND)
        time.sleep(max(0, min(mine, end) - time.perf_counter()))

    def work(me):
        search, number, mine = searches[me], os.getpid() * 31 + me * 97, []
        time.sleep(max(0, begin - time.perf_counter()))
        while time.perf_counter() < end:
            if "rate" in request:
                wait()
            started = time.perf_counter()
            try:
                search(queries[number % len(queries)], setting)
                mine.append((epoch + started, time.perf_counter() - started))
            except Exception as error:
                errors[type(error).__name__] += 1
            number += 1
        calls.extend(mine)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(request["threads"])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    path = f"{folder}/calls-{os.getpid()}.npy"
    np.save(path, np.array(calls, float).reshape(-1, 2))
    return {"seconds": time.perf_counter() - begin, "calls": path, "errors": errors}
