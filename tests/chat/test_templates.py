"""Chat templates: the sandbox holds, the limits hold, the fallbacks are what their families expect."""

from __future__ import annotations

import time

import pytest

from myllm_core import ChatRequest, Message
from myllm_core.chat.fallbacks import FALLBACKS, choose_fallback
from myllm_core.chat.prompt import Preparer
from myllm_core.chat.sandbox import compile_template, render
from myllm_core.engine import ModelFacts
from myllm_core.errors import TemplateError

GROW = "{%% set ns = namespace(x='aaaaaaaa') %%}{%% for i in range(60) %%}{%% set ns.x = %s %%}{%% endfor %%}"
CONVERSATION = (
    Message("system", "Be kind."),
    Message("user", "Hi"),
    Message("assistant", "Hello!"),
    Message("user", "Bye"),
)


def test_common_template_features_work():
    source = (
        "{%- for m in messages if m.role != 'tool' -%}{% if loop.first %}{% continue %}{% endif %}"
        "{% generation %}{{ m.content | trim | tojson }}{% endgeneration %}{{ '-' * 3 ~ loop.index }}"
        "{% endfor %}{{ '{} {}'.format('a', 1) }} {{ 'n%s' % 2 }} {{ strftime_now('%Y') | length }}"
    )
    messages = [{"role": "user", "content": "drop"}, {"role": "user", "content": " <é> "}]
    assert render(compile_template(source), {"messages": messages}) == '"<é>"---2a 1 n2 4'


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.popen('touch canary') }}",
        "{{ messages.append(1) }}",
        "{{ lipsum.__globals__['os'] }}",
        "{{ '{0.__class__}'.format(1) }}{{ messages.__class__.__base__.__subclasses__()[0]() }}",
        "{{ (messages | attr('__class__')).__mro__ }}",
    ],
)
def test_no_template_reaches_python(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TemplateError):
        rendered = render(compile_template(source), {"messages": []})
        raise AssertionError(rendered)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(99999) %}" * 3 + "{% endfor %}" * 3,
        "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}",
        "{{ 'x' * 10**10 }}",
        "{{ [1] * 10**10 }}",
        "{{ 9 ** (9 ** 9) }}",
        "{{ 'x'.center(10**10) }}{{ 'x' | center(10**10) }}",
        "{{ '{:>9999999999}'.format(1) }}",
        "{{ '%9999999999d' % 1 }}",
        GROW % "ns.x ~ ns.x",
        GROW % "ns.x + ns.x",
        GROW % "ns.x.replace('a', ns.x)",
        GROW % "ns.x.join([ns.x, ns.x, ns.x])",
        GROW % "[ns.x, ns.x] | join",
        GROW % "ns.x | replace('a', ns.x)",
        "{% for a in range(99999) %}{{ 'x' * 1000 }}{% endfor %}",
    ],
)
def test_bombs_are_cut_soon_and_cheaply(source):
    started = time.monotonic()
    with pytest.raises(TemplateError):
        render(compile_template(source), {"messages": []})
    assert time.monotonic() - started < 5


def test_a_template_that_cannot_be_read_says_so():
    with pytest.raises(TemplateError, match="can't be read"):
        compile_template("{% for %}")


def test_a_template_that_refuses_says_why():
    with pytest.raises(TemplateError, match="roles must alternate"):
        render(compile_template("{{ raise_exception('roles must alternate') }}"), {})


def test_rendering_is_repeatable_after_a_time_up():
    slow = compile_template("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}")
    with pytest.raises(TemplateError, match="takes longer"):
        render(slow, {})
    assert render(compile_template("{{ 1 + 1 }}"), {}) == "2"


def tokens_of(facts: ModelFacts, messages=CONVERSATION, names=""):
    seen = []
    preparer = Preparer(facts, lambda text, special: seen.append(text) or [1], list, names)
    preparer.prepare(ChatRequest(messages))
    return "".join(seen), preparer.template_name


def test_a_template_without_system_role_gets_it_with_the_first_user_message():
    source = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}"
        "[{{ m.role }}:{{ m.content }}]{% endfor %}"
    )
    text, _ = tokens_of(ModelFacts(100, chat_template=source))
    assert text == "[user:Be kind.\n\nHi][assistant:Hello!][user:Bye]"


@pytest.mark.parametrize("family", sorted(FALLBACKS))
def test_every_fallback_has_each_message_once_and_in_order(family):
    facts = ModelFacts(1000, eos_text="</s>", bos_text="<s>", chat_template=FALLBACKS[family].source)
    text, _ = tokens_of(facts)
    positions = [text.index(message.content) for message in CONVERSATION]
    assert positions == sorted(positions)
    assert all(text.count(message.content) == 1 for message in CONVERSATION)


@pytest.mark.parametrize(
    ("special", "names", "family"),
    [
        (("<|im_start|>",), "", "chatml"),
        (("<|start_header_id|>",), "x", "llama3"),
        (("<start_of_turn>",), "", "gemma"),
        (("<s>",), "Llama-2-7b-chat", "llama2"),
        ((), "vicuna-13b:q4", "vicuna"),
        ((), "phi-2:latest phi2", "phi"),
        ((), "TinyLlama-1.1B", "zephyr"),
        ((), "something", "chatml"),
    ],
)
def test_the_fallback_is_chosen_by_special_tokens_then_by_name(special, names, family):
    assert choose_fallback(special, names)[0] == family


def test_llama2_and_chatml_are_rendered_as_documented():
    text, name = tokens_of(ModelFacts(1000, bos_text="<s>", eos_text="</s>"), names="llama-2-7b")
    assert name == "llama2"
    assert text == "<s>[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\nHi [/INST] Hello! </s><s>[INST] Bye [/INST]"
    text, _ = tokens_of(ModelFacts(1000), CONVERSATION[:2])
    assert text == "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
