"""Plain data -> canonical JSON -> sha256. Whatever has no stable identity is refused."""

import hashlib
import json
import math
from typing import Any


def fingerprint(payload: dict[str, Any]) -> str:
    """64 hex digits. Raises TypeError or ValueError, with the key, on anything but plain finite data."""
    _check(payload, "payload")
    text = json.dumps(payload, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def differences(old: Any, new: Any, key: str = "") -> list[str]:
    """The keys in which two payloads differ, each with both values."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(old.keys() | new.keys())
        return [line for k in keys for line in differences(old.get(k), new.get(k), f"{key}.{k}".lstrip("."))]
    return [] if old == new else [f"{key}: {_short(old)} -> {_short(new)}"]


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 24 else f"{text[:19]}.."


def _check(value: Any, key: str) -> None:
    if isinstance(value, dict):
        for name, inner in value.items():
            if not isinstance(name, str):
                raise TypeError(f"{key} has the key {name!r}; only strings have a stable order")
            _check(inner, f"{key}.{name}")
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            _check(inner, f"{key}[{index}]")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{key} is {value}, which JSON cannot say")
    elif not isinstance(value, str | int | float | bool | None):
        raise TypeError(f"{key} is a {type(value).__name__}, which has no stable identity")
