"""Chat templates of the families that people train, as short as they can be and still do what these do."""
# ruff: noqa: E501 - a line of a template is a line of what it writes

from collections.abc import Sequence
from typing import Any

from tokenizers import ByteLevelBPETokenizer
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
# The system's words go into the user's first turn; roles have to alternate.
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set first = messages[0]['content'] + '\n\n' %}"
    "{% set rest = messages[1:] %}{% else %}{% set first = '' %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{{ first if loop.first else '' }}{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
# A finished dialogue is closed by the end of text too.
PHI = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)
# No generation prompt: the assistant answers after [/INST].
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %} {{ m['content'] }}{{ eos_token }}"
    "{% else %}[INST] {{ m['content'] }} [/INST]{% endif %}{% endfor %}"
)
QWEN3 = """\
{%- if tools %}{{- '<|im_start|>system\n' }}{%- if messages[0].role == 'system' %}{{- messages[0].content + '\n\n' }}{%- endif %}
{{- "# Tools\n<tools>" }}{%- for tool in tools %}{{- "\n" }}{{- tool | tojson }}{%- endfor %}{{- "\n</tools><|im_end|>\n" }}
{%- elif messages[0].role == 'system' %}{{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}{%- endif %}
{%- set ns = namespace(searching=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}{%- set index = (messages|length - 1) - loop.index0 %}
{%- if ns.searching and message.role == "user" %}{%- set ns.searching = false %}{%- set ns.last = index %}{%- endif %}
{%- endfor %}
{%- for message in messages %}{%- set content = message.content if message.content is string else '' %}
{%- if message.role == "user" or (message.role == "system" and not loop.first) %}
{{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>\n' }}
{%- elif message.role == "assistant" %}
{%- set reasoning = '' %}
{%- if message.reasoning_content is string %}{%- set reasoning = message.reasoning_content %}
{%- elif '</think>' in content %}
{%- set reasoning = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
{%- set content = content.split('</think>')[-1].lstrip('\n') %}
{%- endif %}
{%- if loop.index0 > ns.last and (loop.last or reasoning) %}
{{- '<|im_start|>assistant\n<think>\n' + reasoning.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}
{%- else %}{{- '<|im_start|>assistant\n' + content }}{%- endif %}
{%- for tool_call in message.tool_calls or [] %}
{%- if content or not loop.first %}{{- '\n' }}{%- endif %}
{%- if tool_call.function %}{%- set tool_call = tool_call.function %}{%- endif %}
{{- '<tool_call>\n{"name": "' + tool_call.name + '", "arguments": ' }}
{%- if tool_call.arguments is string %}{{- tool_call.arguments }}{%- else %}{{- tool_call.arguments | tojson }}{%- endif %}
{{- '}\n</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\n' }}
{%- elif message.role == "tool" %}
{%- if loop.first or messages[loop.index0 - 1].role != "tool" %}{{- '<|im_start|>user' }}{%- endif %}
{{- '\n<tool_response>\n' + content + '\n</tool_response>' }}
{%- if loop.last or messages[loop.index0 + 1].role != "tool" %}{{- '<|im_end|>\n' }}{%- endif %}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}
{%- endif %}
"""
# Drops all reasoning from what was said, and opens it in the generation prompt.
R1 = (
    "{{ bos_token }}{% for m in messages %}{% set content = m['content'] %}{% if m['role'] == 'assistant' %}"
    "{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}"
    "<|Assistant|>{{ content }}<|end_of_sentence|>{% elif m['role'] == 'user' %}<|User|>{{ content }}"
    "{% else %}{{ content }}{% endif %}{% endfor %}{% if add_generation_prompt %}<|Assistant|><think>\n{% endif %}"
)
# Writes what the row says, and opens the reasoning in the generation prompt.
OPENING = CHATML.replace("<|im_start|>assistant\n{% endif %}", "<|im_start|>assistant\n<think>\n{% endif %}")
# The system's flags say whether there is reasoning; without, an empty block stands before each answer.
SMOLLM3 = """\
{%- set mode = "/think" if enable_thinking is not defined or enable_thinking else "/no_think" -%}
{%- set instructions = "You are SmolLM." -%}
{%- if messages[0].role == "system" -%}{%- set said = messages[0].content -%}
{%- if "/no_think" in said -%}{%- set mode = "/no_think" -%}{%- elif "/think" in said -%}{%- set mode = "/think" -%}{%- endif -%}
{%- set instructions = said.replace("/no_think", "").replace("/think", "").rstrip() -%}{%- endif -%}
{{- "<|im_start|>system\nToday Date: " ~ strftime_now("%d %B %Y") ~ "\nReasoning Mode: " ~ mode ~ "\n\n" ~ instructions -}}
{{- "<|im_end|>\n" -}}
{%- for message in messages -%}
{%- if message.role == "user" -%}{{ "<|im_start|>user\n" + message.content + "<|im_end|>\n" }}
{%- elif message.role == "assistant" -%}
{{ "<|im_start|>assistant\n" + ("" if mode == "/think" else "<think>\n\n</think>\n") + message.content.lstrip("\n") + "<|im_end|>\n" }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ "<|im_start|>assistant\n" + ("" if mode == "/think" else "<think>\n\n</think>\n") }}
{%- endif -%}
"""
# Channels; reasoning of the last turn alone; a last turn ends with <|return|>, an earlier one with <|end|>.
GPT_OSS = """\
{{- "<|start|>system<|message|>You are ChatGPT.\nCurrent date: " + strftime_now("%Y-%m-%d") + "<|end|>" -}}
{%- for message in messages -%}
{%- if message.role == "system" -%}
{{- "<|start|>developer<|message|># Instructions\n\n" + message.content + "<|end|>" -}}
{%- elif message.role == "user" -%}{{- "<|start|>user<|message|>" + message.content + "<|end|>" -}}
{%- elif message.role == "tool" -%}
{{- "<|start|>functions." + message.name + " to=assistant<|channel|>commentary<|message|>" + message.content|tojson + "<|end|>" -}}
{%- elif message.tool_calls -%}
{%- if message.thinking -%}{{- "<|start|>assistant<|channel|>analysis<|message|>" + message.thinking + "<|end|>" -}}{%- endif -%}
{%- set call = message.tool_calls[0].function -%}
{{- "<|start|>assistant to=functions." + call.name + "<|channel|>commentary json<|message|>" + call.arguments|tojson + "<|call|>" -}}
{%- elif loop.last and not add_generation_prompt -%}
{%- if message.thinking -%}{{- "<|start|>assistant<|channel|>analysis<|message|>" + message.thinking + "<|end|>" -}}{%- endif -%}
{{- "<|start|>assistant<|channel|>final<|message|>" + message.content + "<|return|>" -}}
{%- else -%}{{- "<|start|>assistant<|channel|>final<|message|>" + message.content + "<|end|>" -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- "<|start|>assistant" -}}{%- endif -%}
"""
# Template, start token, end token of the tokenizer, further control tokens.
FAMILIES: dict[str, tuple[str, str | None, str, list[str]]] = {
    "chatml": (CHATML, None, "<|im_end|>", ["<|im_start|>", "<|endoftext|>"]),
    "chatml on a base": (CHATML, None, "<|endoftext|>", ["<|im_start|>", "<|im_end|>"]),
    "llama3": (LLAMA3, "<|begin_of_text|>", "<|eot_id|>", ["<|start_header_id|>", "<|end_header_id|>"]),
    "gemma": (GEMMA, "<bos>", "<eos>", ["<start_of_turn>", "<end_of_turn>"]),
    "phi": (PHI, None, "<|endoftext|>", ["<|user|>", "<|system|>", "<|assistant|>", "<|end|>"]),
    "mistral": (MISTRAL, "<s>", "</s>", []),
    "qwen3": (QWEN3, None, "<|im_end|>", ["<|im_start|>", "<|endoftext|>"]),
    "r1": (R1, "<|begin_of_sentence|>", "<|end_of_sentence|>", ["<|User|>", "<|Assistant|>"]),
    "opening": (OPENING, None, "<|im_end|>", ["<|im_start|>"]),
    "smollm3": (SMOLLM3, None, "<|im_end|>", ["<|im_start|>"]),
    "gpt-oss": (
        GPT_OSS, None, "<|return|>", ["<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|call|>"],
    ),
}  # fmt: skip


def byte_tokenizer(family: str, unmarked: Sequence[str] = ("<think>", "</think>")) -> Any:
    """A byte-level tokenizer with the control tokens of a family; `unmarked` are added without being special."""
    template, start, end, others = FAMILIES[family]
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        ["the weather is good and the weather is bad, user and assistant say so"] * 4,
        vocab_size=320,
        special_tokens=[token for token in (start, end, *others) if token],
        show_progress=False,
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, bos_token=start, eos_token=end)
    tokenizer.add_tokens(list(unmarked))
    tokenizer.chat_template = template
    return tokenizer
