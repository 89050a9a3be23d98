"""Chat templates render exactly as in transformers, and stay in their sandbox."""

from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from star_export.errors import InputError
from star_export.preprocessing import PromptSpec
from star_export.preprocessing.prompts import render_messages

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
QUESTION = "Zwei Wörter, {braces} & <b>'quotes'</b> 犬 \n next"

#: One of every style, written after the models that they are named for.
TEMPLATES = {
    "llava-hf": "{% for m in messages %}{{ m['role'].upper() + ': ' }}"
    "{% for part in m['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% if m['role'] != 'assistant' %}"
    "{% for part in m['content'] | selectattr('type', 'equalto', 'text') %}{{ part['text'] + ' ' }}"
    "{% endfor %}"
    "{% else %}{% for part in m['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ part['text'] + ' ' }}{% endgeneration %}{% endfor %}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}",
    "vicuna": "{% set system = 'A chat.' %}{% if messages[0].role == 'system' %}"
    "{% set system = messages[0].content %}{% set messages = messages[1:] %}{% endif %}{{ system }}"
    "{% for m in messages %}{% if m.role == 'user' %} USER: {{ m.content | join }}{% else %}"
    " ASSISTANT: {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %} ASSISTANT:{% endif %}",
    "llama-2": "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system = '<<SYS>>\\n' + messages[0]['content'] + '\\n<</SYS>>\\n\\n' %}{% else %}"
    "{% set loop_messages = messages %}{% set system = '' %}{% endif %}"
    "{% for m in loop_messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if loop.index0 == 0 %}{% set content = system ~ m['content'] %}"
    "{% else %}{% set content = m['content'] %}{% endif %}"
    "{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' ~ content | trim ~ ' [/INST]' }}"
    "{% else %}{{ ' ' ~ content | trim ~ ' ' + eos_token }}{% endif %}{% endfor %}",
    "llama-3": "{{- bos_token }}\n{%- for m in messages %}\n"
    "    {{- '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' }}\n"
    "    {%- if m['content'] is string %}\n        {{- m['content'] | trim }}\n    {%- else %}\n"
    "        {%- for part in m['content'] %}\n            {%- if part['type'] == 'image' %}\n"
    "                {{- '<image>' }}\n            {%- elif part['type'] == 'text' %}\n"
    "                {{- part['text'] }}\n            {%- endif %}\n        {%- endfor %}\n    {%- endif %}\n"
    "    {{- '<|eot_id|>' }}\n{%- endfor %}\n{%- if add_generation_prompt %}\n"
    "    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}\n{%- endif %}",
    "chatml": "{% for m in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "<|im_start|>system\nYou are helpful.<|im_end|>\n{% endif %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}<|im_end|>\n{% else %}{% for part in m['content'] %}"
    "{% if part['type'] == 'image' or 'image' in part %}<image>{% elif 'text' in part %}{{ part['text'] }}"
    "{% endif %}{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "mistral": "{%- if messages[0]['role'] == 'system' %}{%- set rest = messages[1:] %}"
    "{%- else %}{%- set rest = messages %}{%- endif %}\n"
    "{%- set ns = namespace(index=0) %}{%- for m in rest if m.role in ('user', 'assistant') %}\n"
    "    {%- if (m['role'] == 'user') != (ns.index % 2 == 0) %}"
    "{{- raise_exception('must alternate') }}{%- endif %}\n"
    "    {%- set ns.index = ns.index + 1 %}\n{%- endfor %}\n{{- bos_token }}{% for m in rest %}"
    "{% if m.role == 'user' %}{{ '[INST]' ~ m.content ~ '[/INST]' }}{% else %}{{ m.content ~ eos_token }}"
    "{% endif %}{% endfor %}",
    "gemma": "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %}{% set role = 'model' %}"
    "{% else %}{% set role = m['role'] %}{% endif %}<start_of_turn>{{ role }}\n"
    "{{ m['content'] | string | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
    "phi": "{% for m in messages %}{% if m['role'] == 'system' and m['content'] %}"
    "{{ '<|system|>\n' + m['content'] + '<|end|>\n' }}{% elif m['role'] == 'user' %}"
    "{{ '<|user|>\n' ~ m['content'] ~ '<|end|>\n' }}{% elif m['role'] == 'assistant' %}"
    "{{ '<|assistant|>\n' ~ m['content'] ~ '<|end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}",
    "onevision": "{% for m in messages %}{{ '<|im_start|>' + m['role'] + ' ' }}"
    "{% for part in m['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>' }}{% endfor %}"
    "{% for part in m['content'] | selectattr('type', 'equalto', 'text') %}{{ '\n' + part['text'] }}"
    "{% endfor %}{{ '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "next-mistral": "{% for m in messages %}{% if m['role'] == 'system' %}"
    "{{ '<<SYS>>\n' + m['content'][0]['text'] + '\n<</SYS>>\n\n' }}"
    "{% elif m['role'] == 'user' %}{{ '[INST] ' }}"
    "{% for part in m['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in m['content'] | selectattr('type', 'equalto', 'text') %}{{ part['text'] }}{% endfor %}"
    "{{ ' [/INST]' }}{% else %}{{ ' ' + m['content'][0]['text'] + '</s> ' }}{% endif %}{% endfor %}",
    "macro": "{%- macro shown(content) -%}{%- if content is string -%}{{ content }}{%- else -%}"
    "{%- for part in content -%}{{ '<image>' if part.type == 'image' else part.text }}{%- endfor -%}"
    "{%- endif -%}{%- endmacro -%}{%- for m in messages -%}"
    "{{ m.role }}={{ shown(m.content) }};{%- endfor -%}",
    "call block": "{% macro turn(role) %}<{{ role }}>{{ caller() }}</{{ role }}>{% endmacro %}"
    "{% for m in messages %}{% call turn(m.role) %}{{ m.content }}{% endcall %}{% endfor %}",
    "generation scopes": "{% set said = 'outside' %}{% for m in messages %}{% generation %}"
    "{% set said = 'inside' %}{{ m.role }} {{ said }}{% endgeneration %} {{ said }}\n{% endfor %}",
    "generation and whitespace": "{%- for m in messages %}\n  {%- generation %}\n  {{ m.role }}\n"
    "  {%- endgeneration %}\n{% endfor %}",
    "namespace": "{% set ns = namespace(found=false, last='', self='kept') %}{% for m in messages %}"
    "{% if m.role == 'user' %}{% set ns.found = true %}{% set ns.last = m.role %}{% endif %}{% endfor %}"
    "{{ ns.found }} {{ ns.last }} {{ ns.self }} {{ namespace({'a': 1}).a }}",
    "dict": "{% set d = dict(a=1, **{'b': 2}) %}{{ d }} {{ dict.fromkeys(['x', 'y'], 0) }} "
    "{{ dict([['p', 'q']]).items() | list }}",
    "loop controls": "{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}"
    "{% if loop.index > 3 %}{% break %}{% endif %}{{ loop.index }}{{ m.role }} {% endfor %}",
    "tojson": "{{ messages | tojson }}\n{{ messages | tojson(indent=2) }}\n"
    "{{ messages | tojson(ensure_ascii=true) }}\n"
    "{{ {'b': 1, 'a': [1, none, true]} | tojson(separators=(',', ':'), sort_keys=true) }}\n"
    "{{ {'b': '<>&'} | tojson(true, 4) }}",
    "time": "{{ strftime_now('%Y-%m-%d') }} {{ strftime_now(format='%d %B %Y') }}",
    "absent values": "{{ tools is none }} {{ documents is none }} {{ unknown is defined }}[{{ unknown }}]"
    "{% if not tools %}no tools{% endif %} {{ bos_token }}{{ pad_token }}",
    "trim and lstrip": "  {% if true %}\n   a\n  {% endif %}\n\n  {# gone #}\n  {{ messages | length }}  \n",
    "filters": "{{ messages | map(attribute='role') | unique | join(',') }} "
    "{{ messages | selectattr('role', 'eq', 'user') | list | length }} {{ '%s-%s' | format('a', 1) }} "
    "{{ 'x' | indent(2, true) }} "
    "{{ 'a b'.split(' ')[-1] }}{{ 'ab'.startswith('a') }}{{ {'k': 1}.get('z', 'none') }}",
    "autoescape stays off": "{{ '<b>&amp;</b>' }}{{ '<' ~ messages[0].role }}",
}
#: As LLaVA-1.5's processors on the hub have it.
HUB = (
    "{% for m in messages %}{% if m['role'] != 'system' %}{{ m['role'].upper() + ': ' }}{% endif %}"
    "{# Render all images first #}"
    "{% for part in m['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{# Render all text next #}{% if m['role'] != 'assistant' %}"
    "{% for part in m['content'] | selectattr('type', 'equalto', 'text') %}{{ part['text'] + ' ' }}"
    "{% endfor %}{% else %}{% for part in m['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ part['text'] + ' ' }}{% endgeneration %}{% endfor %}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
REFUSED = {
    "exception": "{{ raise_exception('only assistants may ask') }}",
    "tojson of what has no JSON": "{{ namespace | tojson }}",
    "tojson with unknown options": "{{ messages | tojson(default=1) }}",
}

USER = {"role": "user", "content": QUESTION}
SYSTEM = {"role": "system", "content": "Be brief."}
ANSWER = {"role": "assistant", "content": " An answer. "}
PARTS = [{"type": "image"}, {"type": "text", "text": QUESTION}]
CONVERSATIONS: list[list[dict[str, Any]]] = [
    [USER],
    [SYSTEM, USER, ANSWER, USER],
    [{"role": "user", "content": PARTS}],
    [
        {"role": "user", "content": PARTS},
        {"role": "assistant", "content": [{"type": "text", "text": "So."}]},
        {"role": "user", "content": [{"type": "text", "text": "Why?"}]},
    ],
]


def spec_of(template: str) -> PromptSpec:
    return PromptSpec(image_token="<image>", image_token_id=4, chat_template=template, special_tokens=SPECIAL)


def theirs(template: str, messages: list[dict[str, Any]]) -> str | None:
    """What transformers renders; None where it refuses."""
    try:
        texts, _ = render_jinja_template(
            [messages], chat_template=template, add_generation_prompt=True, **SPECIAL
        )
    except Exception:  # a template can raise whatever Python can
        return None
    return str(texts[0])


def ours(template: str, messages: list[dict[str, Any]]) -> str | None:
    """What we render; None where we refuse."""
    try:
        return render_messages(messages, spec_of(template))
    except InputError:
        return None


@pytest.mark.parametrize("style", TEMPLATES)
def test_a_template_renders_as_in_transformers(style: str) -> None:
    template = TEMPLATES[style]
    expected = [theirs(template, messages) for messages in CONVERSATIONS]
    assert any(expected)  # texts are compared, not refusals alone
    assert [ours(template, messages) for messages in CONVERSATIONS] == expected


@pytest.mark.parametrize("style", REFUSED)
def test_a_template_is_refused_as_in_transformers(style: str) -> None:
    assert theirs(REFUSED[style], CONVERSATIONS[0]) is None
    assert ours(REFUSED[style], CONVERSATIONS[0]) is None


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('only assistants may ask') }}", "only assistants may ask"),
        ("{% for %}", "Expected an expression"),
        ("{% generation %}open", "Unexpected end of template"),
        ("{{ nobody.home }}", "'nobody' is undefined"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ ''.__class__.__base__.__subclasses__() }}", "unsafe"),
        ("{{ raise_exception.__globals__['json'] }}", "unsafe"),
        ("{{ strftime_now.__globals__.keys() }}", "unsafe"),
        ("{{ namespace.__init__.__globals__ }}", "unsafe"),
        ("{{ dict.__call__.__globals__ }}", "unsafe"),
        ("{{ dict.mro() }}", "has no attribute 'mro'"),
        ("{% set ns = namespace(__class__=1) %}", "may not store '__class__'"),
        ("{% set ns = namespace() %}{% set ns._secret = 1 %}", "may not store '_secret'"),
        ("{{ '{0.__class__.__mro__}'.format('') }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ 'USER: ' + messages[0]['content'] }}", "can only concatenate str"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{% include 'x' %}", "no loader"),
    ],
)
def test_a_template_that_refuses_or_escapes(template: str, message: str) -> None:
    with pytest.raises(InputError, match=f"chat template refuses this prompt: .*{message}"):
        render_messages([{"role": "user", "content": PARTS}], spec_of(template))
