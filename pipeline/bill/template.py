"""How many tokens a chat template adds to texts: found by letting it write a short dialogue."""

import json
from functools import lru_cache

from stages.model_files import at_hand
from stages.shard.config import ShardConfig, Source
from stages.shard.look import counter
from stages.shard.rendering.template import plainly, read_template

_TEXT = "said"
_UNKNOWN = 12, 4  # of most templates, where one refuses such a dialogue


def added(config: ShardConfig, source: Source, of_messages: bool) -> tuple[int, int]:
    """(beside the text of a prompt of one message, beside that of a completion), tokens."""
    if not (of_messages or source.text == "chat"):
        return 0, 1  # what ends a completion
    return _added(config.tokenizer, config.chat.template)


@lru_cache
def _added(tokenizer: str, template: str | None) -> tuple[int, int]:
    special, source = _of_tokenizer(tokenizer)
    source = read_template(template) if template is not None else source
    plain = ShardConfig(source="-", tokenizer=tokenizer)
    count, _ = counter(plain, plain.all_sources[0], of_messages=False)
    asked, answer = [{"role": "user", "content": _TEXT}], [{"role": "assistant", "content": _TEXT}]
    if source is None or count is None:
        return _UNKNOWN
    try:
        prompt, whole = plainly(source, asked, True, special), plainly(source, asked + answer, False, special)
    except Exception:  # whatever a template raises
        return _UNKNOWN
    text, opened = count(_TEXT), count(prompt)
    return max(opened - text, 0), max(count(whole) - opened - text, 1)


def _of_tokenizer(name: str) -> tuple[dict[str, str], str | None]:
    """(the special tokens that templates name, the template) in a tokenizer's files."""
    if (path := at_hand(name, "tokenizer_config.json")) is None:
        return {}, None
    config = json.loads(path.read_text())
    named = {key: config.get(key) for key in ("bos_token", "eos_token", "pad_token", "unk_token")}
    special = {key: each["content"] if isinstance(each, dict) else str(each) for key, each in named.items() if each}
    source = config.get("chat_template")
    if isinstance(source, list):
        source = next((each["template"] for each in source if each.get("name") == "default"), None)
    file = at_hand(name, "chat_template.jinja")
    return special, file.read_text() if file is not None else source
