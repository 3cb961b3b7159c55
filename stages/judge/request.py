"""One request to an endpoint, which takes no longer than it may: connecting, sending and reading the whole answer.

By aiohttp, whose time-out is of the request. That of urllib, httpx and requests is of each read of the socket, so that
a server which sends a byte now and then is never given up.
"""

import asyncio
from typing import Any, NamedTuple

import aiohttp


class Reply(NamedTuple):
    status: int
    retry_after: str | None
    body: bytes


def posted(url: str, body: dict[str, Any], headers: dict[str, str], seconds: float) -> Reply:
    """`body` goes as JSON. Raises TimeoutError, aiohttp.ClientError, OSError, and ValueError for what is no URL."""
    return asyncio.run(_posted(url, body, headers, seconds))


async def _posted(url: str, body: dict[str, Any], headers: dict[str, str], seconds: float) -> Reply:
    # trust_env: through the proxy that the environment names, if it does
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=seconds), trust_env=True) as session,
        session.post(url, json=body, headers=headers) as response,
    ):
        return Reply(response.status, response.headers.get("Retry-After"), await response.read())
