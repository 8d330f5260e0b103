"""The client for asyncio: `await vecdb.aio.connect("grpc://localhost:7700")`.

Its methods are those of the embedded API, awaited.
"""

from __future__ import annotations

from .client.blocking import address_of
from .client.channel import Waiting
from .client.database import AsyncDatabase


async def connect(
    url: str,
    *,
    api_key: str | None = None,
    ca: str | None = None,
    cert: str | None = None,
    key: str | None = None,
    timeout: float | None = None,
    retries: int = 6,
) -> AsyncDatabase:
    """As `vecdb.connect`; for the event loop that is running."""
    return await AsyncDatabase.over(Waiting(address_of(url, api_key, ca, cert, key, timeout, retries)))
