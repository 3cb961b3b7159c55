"""Tool calls in messages, as OpenAI's interface writes them: {"function": {"name": .., "arguments": ..}}."""

import json
from collections.abc import Callable
from typing import Any


def function_of(call: Any) -> dict[str, Any]:
    """Name and arguments; some sets have them in the call itself."""
    if not isinstance(call, dict):
        return {}
    return call["function"] if isinstance(call.get("function"), dict) else call


def with_arguments(call: Any, change: Callable[[Any], Any]) -> Any:
    """The call with changed arguments, if it has any."""
    function = function_of(call)
    if "arguments" not in function:
        return call
    changed = function | {"arguments": change(function["arguments"])}
    return changed if function is call else call | {"function": changed}


def parsed(arguments: Any) -> Any:
    """JSON text as what it says; other text as it stands."""
    if isinstance(arguments, str):
        try:
            return json.loads(arguments)
        except ValueError:
            pass
    return arguments


def as_text(arguments: Any) -> Any:
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False, default=str)


def emptied_of(arguments: Any) -> Any:
    return "{}" if isinstance(arguments, str) else {}
