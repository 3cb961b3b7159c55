"""Passwords and keys that stand in a URL: it would be written into logs, facts and errors, and they with it."""

import re
from collections.abc import Iterator
from typing import Any

_IN_URL = re.compile(
    r"://[^/\s:@]*:[^/\s@]+@"  # user:password@host
    r"|://\S*[?&](?:[\w-]*signature|sig|token|access_token|api_?key|password)=",  # a signed link
    re.IGNORECASE,
)


def passwords(content: Any) -> list[str]:
    """A line for each key of a recipe or cluster file whose URL has one. What goes into workers' environment may."""
    return [
        f"{key}: this URL has a password or a key in it, which would be written down with it. Leave it out, and set it "
        "in the environment of the nodes"
        for key in _found(content, "")
    ]


def _found(content: Any, key: str) -> Iterator[str]:
    if isinstance(content, str) and _IN_URL.search(content):
        yield key
    parts = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for name, part in parts:
        if name != "env_vars":
            yield from _found(part, f"{key}.{name}".lstrip("."))
