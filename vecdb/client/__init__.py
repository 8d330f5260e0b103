"""Clients of a server: the embedded API over the wire, blocking (`vecdb.connect`) and for asyncio (`vecdb.aio.connect`).

`channel.py` carries calls, with retries and typed errors; `database.py` and `collection.py` are the API, written once, as
coroutines; `blocking.py` makes the blocking classes of them. A client holds no data: each call asks the server.
"""
