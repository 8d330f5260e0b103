"""The gRPC server: a database in one or several processes, for clients in others.

`serve.py` puts it together and ends it; `gate.py` is what every request of every kind passes; `collections.py`, `points.py`,
`searches.py` and `admin.py` answer them by the embedded API and by nothing beneath it. Loaded by `vecdb serve` only.
"""
