"""A look at the first rows of prompts, before anything is started: what `sample` would say of them later."""

from dataclasses import dataclass

from stages.errors import RecipeError
from stages.model_files import has_chat_template
from stages.sample.asked import as_shard, is_chat, prompt_of, told_of_sample
from stages.sample.config import SampleConfig
from stages.shard.look import ROWS, Look, counter, first_rows, not_here
from stages.shard.report.contamination import texts_of
from stages.shard.shapes.row import Rejected
from stages.storage.named import unmarked


@dataclass(frozen=True)
class Measured:
    """The first rows of prompts, of which one at least is one."""

    rows: int
    lengths: list[int]  # tokens of each prompt, without those of a template
    counted: bool  # else the tokenizer is not at hand, and all lengths are 0
    problems: list[str]  # of each row that makes none
    notices: list[str]


def look(config: SampleConfig) -> Look:
    """Read, parse and measure the first rows. Raises RecipeError where `sample` would fail on them."""
    name = unmarked(config.source)[0]
    if (seen := measure(config)) is None:
        return not_here(name)
    short, notices = name.rpartition("/")[2], list(seen.notices)
    said = f"the first {seen.rows} rows of {short} have prompts"
    if seen.counted:
        said += f"; the longest has about {max(seen.lengths)} tokens, and sample.max_prompt_length is "
        said += f"{config.max_prompt_length}"
    if seen.problems:
        notices.append(
            f"{len(seen.problems)} of the first {seen.rows} rows of {short} make no prompt: {seen.problems[0]}"
        )
    return Look(said, tuple(notices))


def measure(config: SampleConfig, count: int = ROWS) -> Measured | None:
    """Of a source that is elsewhere None. Raises RecipeError as `look` does."""
    with told_of_sample():
        return _measured(config, count)


def _measured(config: SampleConfig, count: int) -> Measured | None:
    read_as = as_shard(config)
    if config.chat.template is not None:
        from stages.shard.rendering.template import read_template  # it imports Jinja

        read_template(config.chat.template)
    (source,) = read_as.all_sources
    if (rows := first_rows(source, count)) is None:
        return None
    chat = is_chat(config, bool(config.chat.template or has_chat_template(config.tokenizer)))
    prompts, problems = [], []
    for number, text in rows:
        try:
            prompts.append((number, prompt_of(text, config, chat)))
        except Rejected as error:
            problems.append(f"row {number}: {error.detail}")
    counted, notices = counter(read_as, source, any(not isinstance(prompt, str) for _, prompt in prompts))
    lengths = []
    for number, prompt in prompts:
        try:
            tokens = counted("\n".join(texts_of(prompt))) if counted else 0
        except (UnicodeError, TypeError) as error:  # a lone surrogate
            problems.append(f"row {number}: the tokenizer cannot read a text of this row: {error}")
            continue
        if tokens > config.max_prompt_length:
            told = f"it has {tokens} tokens or more, and sample.max_prompt_length is {config.max_prompt_length}"
            problems.append(f"row {number}: {told}")
        else:
            lengths.append(tokens)
    if not lengths:
        name = unmarked(config.source)[0]
        raise RecipeError(f"none of the first {len(rows)} rows of {name} makes a prompt: {problems[0]}")
    return Measured(len(rows), lengths, counted is not None, problems, notices)
