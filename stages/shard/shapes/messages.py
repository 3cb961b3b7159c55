"""Messages as sets write them -> {"role", "content", ..} as chat templates read them."""

import json
import re
from typing import Any

from stages.shard.shapes.row import Malformed, Message, Rejected

# What ShareGPT and its followers call the speakers.
ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "assistant": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
    "function_call": "assistant",
}
MEDIA = {"image", "images", "audio", "audios", "video", "videos"}  # columns of what is not text
_SPEAKER = re.compile(r"\n\n(Human|Assistant):")


def decoded(value: Any) -> Any:
    """A message or list of messages that is given as JSON text; any other value as it is."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            held = json.loads(value)
        except ValueError:
            return value
        return held if looks_like_messages(held) else value
    return value


def looks_like_messages(value: Any) -> bool:
    messages = value if isinstance(value, list) else [value]
    return bool(messages) and all(
        isinstance(m, dict) and (isinstance(m.get("role"), str) or isinstance(m.get("from"), str)) for m in messages
    )


def messages_of(value: Any, name: str) -> list[Message]:
    """Of a list of messages, or of one message alone. `name` is what people call it. Raises Malformed, Rejected."""
    value = [value] if isinstance(value, dict) else value
    if not isinstance(value, list):
        raise Malformed(f"{name} is a {type(value).__name__}, not a list of messages")
    return [_message(each, name) for each in value]


def dialogue(text: str) -> list[Message]:
    """Of plain text: the user's one message, or the turns of a transcript (HH's and Nectar's "\\n\\nHuman: ..")."""
    start, *rest = _SPEAKER.split(text)
    if not rest or start.strip():
        return [{"role": "user", "content": text}]
    turns = [
        {"role": "user" if who == "Human" else "assistant", "content": said.strip()}
        for who, said in zip(rest[::2], rest[1::2], strict=True)
    ]
    return turns[:-1] if turns[-1] == {"role": "assistant", "content": ""} else turns


def without_nulls(value: Any) -> Any:
    """Keys without a value go, at any depth: Parquet and Arrow put them into rows that are unlike."""
    if isinstance(value, dict):
        return {key: without_nulls(each) for key, each in value.items() if each is not None}
    return [without_nulls(each) for each in value] if isinstance(value, list) else value


def json_list(value: Any, name: str) -> list[dict[str, Any]] | None:
    """A list of objects, each or all of which may be JSON text; None where there are none."""
    value = _json(value, name) if isinstance(value, str) and value.strip() else value
    if value is None or value in ("", [], {}) or (isinstance(value, str) and not value.strip()):
        return None
    found = [_json(each, name) if isinstance(each, str) else each for each in value] if isinstance(value, list) else []
    if not found or not all(isinstance(each, dict) for each in found):
        raise Malformed(f"{name} is not a list of JSON objects")
    return [without_nulls(each) for each in found]


def json_object(value: Any, name: str) -> dict[str, Any] | None:
    """An object that may be JSON text; None where there is none."""
    value = _json(value, name) if isinstance(value, str) and value.strip() else value
    if value is None or value in ("", {}) or (isinstance(value, str) and not value.strip()):
        return None
    if not isinstance(value, dict):
        raise Malformed(f"{name} is a {type(value).__name__}, not a JSON object")
    return without_nulls(value) or None


def refuse_media(row: dict[str, Any]) -> None:
    for name in sorted(MEDIA & row.keys()):
        if row[name] and isinstance(row[name], list | dict):
            raise Rejected("unsupported", f"column {name!r} holds {_kind(name)}, and only text is trained on")


def _message(raw: Any, name: str) -> Message:
    if not isinstance(raw, dict):
        raise Malformed(f'{name} is not a list of messages {{"role": .., "content": ..}}: {_short(raw)}')
    message = {key: value for key, value in raw.items() if value is not None and isinstance(key, str)}
    if "role" not in message and isinstance(message.get("from"), str):
        message = _of_sharegpt(message, name)
    role = message.get("role")
    if not isinstance(role, str) or not role:
        raise Malformed(f'{name} is not a list of messages {{"role": .., "content": ..}}: {_short(raw)} has no role')
    message["role"] = {"human": "user", "gpt": "assistant"}.get(role, role)
    if (calls := json_list(message.pop("tool_calls", None), f"the tool_calls of {name}")) is not None:
        message["tool_calls"] = calls
    if "content" in message:
        message["content"] = _content(message["content"], name)
    elif calls or message.get("reasoning_content") or message.get("thinking"):
        message["content"] = None
    else:
        raise Malformed(
            f'{name} is not a list of messages {{"role": .., "content": ..}}: one of {role} has neither content nor '
            "tool_calls"
        )
    return message


def _of_sharegpt(message: dict[str, Any], name: str) -> Message:
    said, value = message["from"], message.get("value")
    role = ROLES.get(said.strip().lower())
    if role is None:
        raise Malformed(f"a message of {name} is from {said!r}, none of {', '.join(ROLES)}")
    rest = {key: each for key, each in message.items() if key not in ("from", "value")}
    if said.strip().lower() != "function_call":
        return rest | {"role": role} | ({} if value is None else {"content": value})
    calls = [json_object(each, name) for each in _as_list(_json(value, name) if isinstance(value, str) else value)]
    if not calls or not all(call and isinstance(call.get("name"), str) for call in calls):
        raise Malformed(f'a function_call of {name} is not {{"name": .., "arguments": ..}}: {_short(value)}')
    return rest | {"role": role, "tool_calls": [{"type": "function", "function": call} for call in calls]}


def _content(content: Any, name: str) -> str:
    """Text, or a list of parts whose texts are joined."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise Malformed(f"a message of {name} has the content {_short(content)}, neither text nor a list of parts")
    texts = []
    for part in content:
        text = part if isinstance(part, str) else part.get("text") if isinstance(part, dict) else None
        kind = part.get("type", "text") if isinstance(part, dict) else "text"
        if kind not in ("text", "input_text", "output_text"):
            raise Rejected("unsupported", f"a message of {name} has {_kind(kind)}, and only text is trained on")
        if not isinstance(text, str):
            raise Malformed(f"a message of {name} has the part {_short(part)}, which is no text")
        texts.append(text)
    return "".join(texts)


def _kind(kind: Any) -> str:
    known = next((each for each in ("image", "audio", "video") if each in str(kind)), None)
    return f"{'a' if known == 'video' else 'an'} {known} part" if known else f"a part of type {_short(kind)}"


def _json(text: Any, name: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, TypeError) as error:
        raise Malformed(f"{name} is text, but not JSON: {_short(text)}") from error


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _short(value: Any) -> str:
    told = repr(value)
    return told if len(told) <= 80 else told[:77] + ".."
