"""A template is said to look at no text only where it does not: what it writes then follows from the outline."""

import pytest
from chat_templates import FAMILIES, byte_tokenizer

from stages.shard.config import Chat
from stages.shard.rendering.opaque import opaque
from stages.shard.rendering.template import Template
from stages.shard.triple import Rejected

EACH = "{% for m in messages %}%s{% endfor %}"
# What a template may do with a text that it hands on.
BLIND = [
    "{{ m['role'] + ': ' + m['content'] + '\n' }}",
    "{{ m.role }}: {{ m.content | trim }}",
    "{{ m.content.strip() if m.content is string else '' }}",
    "{% if m.content %}{{ m.get('content') }}{% else %}nothing{% endif %}",
    "{% set c = m['content'] %}{% if c is defined and c is not none and c is iterable %}{{ '<' + c + '>' }}{% endif %}",
    "{% set ns = namespace(c='') %}{% set ns.c = m.content %}{{ ns.c }}",
]
# What one must not, in every way that hides it.
LOOKING = [
    "{% if 'x' in m.content %}{{ m.content }}{% endif %}",
    "{% if m.content in 'xyz' %}!{% endif %}{{ m.content }}",
    "{% if m.content in ['x', 'y'] %}!{% endif %}{{ m.content }}",
    "{% if m.content == 'x' %}!{% endif %}{{ m.content }}",
    "{% if 'x' == m.content %}!{% endif %}{{ m.content }}",
    "{{ m.content[0] }}{{ m.content[1:] }}",
    "{{ m.content.split('x')[0] }}",
    "{{ m.content.replace('x', '') }}",
    "{{ 'a-b'.replace('-', m.content) }}",
    "{{ m.content | replace('x', '') }}",
    "{{ m.content | upper }}",
    "{{ m.content | title }}",
    "{{ m.content | length }}{{ m.content }}",
    "{{ m.content | tojson }}",
    "{{ m.content ~ '' }}",
    "{% set c = m.role ~ m.content %}{% if 'x' in c %}!{% endif %}{{ c }}",
    "{% set c %}{{ m.content }}{% endset %}{% if 'x' in c %}!{% endif %}{{ c }}",
    "{% macro f(c) %}{{ c }}{% endmacro %}{{ f(m.content) }}",
    "{{ '%s' % m.content }}",
    "{{ '{}'.format(m.content) }}",
    "{{ ['a', m.content] | join('') }}",
    "{{ ['b', m.content] | sort | first }}",
    "{% for c in m.content %}{{ c }}{% endfor %}",
    "{{ {'x': 1}.get(m.content, 2) }}{{ m.content }}",
    "{{ m }}",
    "{% if m.content < 'x' %}!{% endif %}{{ m.content }}",
]


def is_blind(template: str) -> bool:
    hf = byte_tokenizer("chatml")
    hf.chat_template = template
    made = Template(hf, Chat(), "it")
    messages = [{"role": "user", "content": " qzx0xzq\n"}, {"role": "assistant", "content": "qzx1xzq"}]
    try:
        return made.may_be_blind and made.render(opaque(messages)) == made.render(messages)
    except Rejected:
        return False


@pytest.mark.parametrize("body", BLIND)
def test_a_text_may_be_handed_on(body: str) -> None:
    assert is_blind(EACH.replace("%s", body))


@pytest.mark.parametrize("body", LOOKING)
def test_a_text_may_not_be_looked_at(body: str) -> None:
    assert not is_blind(EACH.replace("%s", body))


def test_which_families_look_at_no_text() -> None:
    blind = {name for name, (template, *_) in FAMILIES.items() if is_blind(template)}
    assert blind == {"chatml", "chatml on a base", "llama3", "mistral", "opening", "phi"}
