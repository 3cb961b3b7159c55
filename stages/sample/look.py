"""A look at the first rows of prompts, before anything is started: what `sample` would say of them later."""

from stages.errors import RecipeError
from stages.model_files import has_chat_template
from stages.sample.asked import as_shard, is_chat, prompt_of, told_of_sample
from stages.sample.config import SampleConfig
from stages.shard.look import Look, counter, first_rows, not_here
from stages.shard.report.contamination import texts_of
from stages.shard.shapes.row import Rejected
from stages.storage import unmarked


def look(config: SampleConfig) -> Look:
    """Read, parse and measure the first rows. Raises RecipeError where `sample` would fail on them."""
    with told_of_sample():
        return _look(config)


def _look(config: SampleConfig) -> Look:
    read_as, name = as_shard(config), unmarked(config.source)[0]
    if config.chat.template is not None:
        from stages.shard.rendering.template import read_template  # it imports Jinja

        read_template(config.chat.template)
    (source,) = read_as.all_sources
    if (rows := first_rows(source)) is None:
        return not_here(name)
    chat = is_chat(config, bool(config.chat.template or has_chat_template(config.tokenizer)))
    prompts, problems = [], []
    for number, text in rows:
        try:
            prompts.append((number, prompt_of(text, config, chat)))
        except Rejected as error:
            problems.append(f"row {number}: {error.detail}")
    count, notices = counter(read_as, source, any(not isinstance(prompt, str) for _, prompt in prompts))
    lengths = []
    for number, prompt in prompts:
        try:
            tokens = count("\n".join(texts_of(prompt))) if count else 0
        except (UnicodeError, TypeError) as error:  # a lone surrogate
            problems.append(f"row {number}: the tokenizer cannot read a text of this row: {error}")
            continue
        if tokens > config.max_prompt_length:
            told = f"it has {tokens} tokens or more, and sample.max_prompt_length is {config.max_prompt_length}"
            problems.append(f"row {number}: {told}")
        else:
            lengths.append(tokens)
    short = name.rpartition("/")[2]
    if not lengths:
        raise RecipeError(f"none of the first {len(rows)} rows of {name} makes a prompt: {problems[0]}")
    said = f"the first {len(rows)} rows of {short} have prompts"
    if count:
        said += f"; the longest has about {max(lengths)} tokens, and sample.max_prompt_length is "
        said += f"{config.max_prompt_length}"
    if problems:
        notices.append(f"{len(problems)} of the first {len(rows)} rows of {short} make no prompt: {problems[0]}")
    return Look(said, tuple(notices))
