"""Calls as models of each family write them, whole and cut at every place; and what looks like a call and is none."""

# ruff: noqa: E501 - a reply reads best on one line
from __future__ import annotations

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from myllm_core.chat.tools.parser import ToolCallParser
from myllm_core.chat.tools.syntax import SYNTAXES
from myllm_core.types import Tool, ToolCallDelta, Tools

TOOLS = Tools(
    (
        Tool("get_weather", "The weather", {"type": "object", "properties": {"city": {"type": "string"}}}),
        Tool("add", "Adds", {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}}),
        Tool("now"),
    )
)
ADD = ("add", {"a": 1, "b": -2})
PARIS = ("get_weather", {"city": "Paris"})
TRICKY = {"city": 'a "quoted" {brace] \\ </tool_call> é 漢 👋'}
TRICKY_JSON = json.dumps(TRICKY, ensure_ascii=False)


def read(family, pieces, tools=TOOLS):
    """(text, calls) of a reply, checking the order of what is told."""
    numbers = iter(range(99))
    parser = ToolCallParser(SYNTAXES[family], tools, lambda: f"id{next(numbers)}")
    told = [piece for part in pieces for piece in parser.feed(part)] + parser.flush()
    text, calls = "", []
    for piece in told:
        if isinstance(piece, str):
            text += piece
        elif piece.id:
            assert (piece.index, piece.id) == (len(calls), f"id{len(calls)}") and piece.name and not piece.arguments
            calls.append([piece.name, ""])
        else:
            assert piece.index == len(calls) - 1 and piece.name is None and piece.arguments
            calls[-1][1] += piece.arguments
    assert parser.count == len(calls)
    if not parser.done:
        assert parser.certain == sum(map(len, pieces))
    return text, [(name, arguments) for name, arguments in calls]


def parsed(family, pieces, tools=TOOLS):
    text, calls = read(family, pieces, tools)
    return text, [(name, json.loads(arguments)) for name, arguments in calls]


def cuts(reply):
    """The reply whole, as characters, and in two at every place."""
    yield [reply]
    yield list(reply)
    for at in range(1, len(reply)):
        yield [reply[:at], reply[at:]]


SAMPLES = [
    # Hermes, Qwen 2.5 and 3
    ("hermes", '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>', "", [PARIS]),
    (
        "hermes",
        'Let me look.\n\n<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": -2}}\n</tool_call>\n'
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>',
        "Let me look.",
        [ADD, PARIS],
    ),
    ("hermes", f'<tool_call>{{"name":"get_weather","arguments":{TRICKY_JSON}}}</tool_call>', "", [("get_weather", TRICKY)]),
    ("hermes", '<tool_call>{"arguments": {"a": 1, "b": -2}, "name": "add"}</tool_call>', "", [ADD]),
    ("hermes", '<tool_call>{"name": "add", "arguments": "{\\"a\\": 1, \\"b\\": -2}"}</tool_call>', "", [ADD]),
    ("hermes", '<tool_call>{"name": "now"}</tool_call>', "", [("now", {})]),
    ("hermes", '<tool_call>{"name": "now", "arguments": null, "id": 5}</tool_call>', "", [("now", {})]),
    ("hermes", '<tool_call>{"name": "now", "arguments": {}}</tool_call> Done.', "Done.", [("now", {})]),
    ("hermes", 'a < b\n<tool_call>{"name": "now", "arguments": {}}', "a < b", [("now", {})]),
    (
        "hermes",
        '<tool_call>[{"name": "add", "arguments": {"a": 1, "b": -2}}, {"name": "now", "arguments": {}}]</tool_call>',
        "",
        [ADD, ("now", {})],
    ),
    # Qwen 3 Coder
    (
        "hermes",
        "I'll see.\n<tool_call>\n<function=add>\n<parameter=a>\n1\n</parameter>\n<parameter=b>\n-2\n</parameter>\n"
        "</function>\n</tool_call>",
        "I'll see.",
        [ADD],
    ),
    (
        "hermes",
        "<tool_call>\n<function=get_weather>\n<parameter=city>\n12\nand <more>\n</parameter>\n</function>\n</tool_call>",
        "",
        [("get_weather", {"city": "12\nand <more>"})],
    ),
    ("hermes", "<tool_call>\n<function=now>\n</function>\n</tool_call>", "", [("now", {})]),
    # Llama 3.1, 3.2, 3.3
    ("llama3", '{"name": "get_weather", "parameters": {"city": "Paris"}}', "", [PARIS]),
    ("llama3", '{"type": "function", "name": "add", "parameters": {"a": 1, "b": -2}}<|eom_id|>', "", [ADD]),
    ("llama3", '<|python_tag|>{"name": "add", "parameters": {"a": 1, "b": -2}}', "", [ADD]),
    ("llama3", '<|python_tag|>get_weather.call(city="Paris")', "", [PARIS]),
    ("llama3", "[add(a=1, b=-2), get_weather(city='Paris')]", "", [ADD, PARIS]),
    ("llama3", '{"name": "add", "parameters": {"a": 1, "b": -2}}; {"name": "now", "parameters": {}}', "", [ADD, ("now", {})]),
    ("llama3", '{"type": "function", "function": {"name": "add", "parameters": {"a": 1, "b": -2}}}', "", [ADD]),
    # Mistral: 7B v0.3 and Nemo; Small 3.2; Ministral 3, Devstral 2
    ("mistral", '[TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "Paris"}, "id": "abc123XYZ"}]', "", [PARIS]),
    (
        "mistral",
        '[TOOL_CALLS] [{"name": "add", "arguments": {"a": 1, "b": -2}}, {"name": "now", "arguments": {}}]',
        "",
        [ADD, ("now", {})],
    ),
    ("mistral-args", '[TOOL_CALLS]get_weather[CALL_ID]abcDEF123[ARGS]{"city": "Paris"}', "", [PARIS]),
    ("mistral-args", 'So.[TOOL_CALLS]add[ARGS]{"a": 1, "b": -2}[TOOL_CALLS]now[ARGS]{}', "So.", [ADD, ("now", {})]),
    ("mistral-args", '[TOOL_CALLS]get_weather{"city": "Paris"}', "", [PARIS]),
    # Gemma
    (
        "functiongemma",
        "<start_function_call>call:get_weather{city:<escape>Paris<escape>}<end_function_call>",
        "",
        [PARIS],
    ),
    (
        "functiongemma",
        "<start_function_call>call:add{a:1,b:-2}<end_function_call><start_function_call>call:now{}<end_function_call>",
        "",
        [ADD, ("now", {})],
    ),
    (
        "gemma4",
        'Well.<|tool_call>call:get_weather{city:<|"|>a "b", c<|"|>,more:{on:true,xs:[1,<|"|>y<|"|>,null]}}<tool_call|>',
        "Well.",
        [("get_weather", {"city": 'a "b", c', "more": {"on": True, "xs": [1, "y", None]}})],
    ),
    ("gemma4", '<|tool_call>call:get_weather{"city": "Paris"}<tool_call|>', "", [PARIS]),
    ("json", '```json\n{"name": "get_weather", "parameters": {"city": "Paris"}}\n```', "", [PARIS]),
    ("json", "Okay.\n```tool_code\nprint(get_weather(city='Paris'))\n```", "Okay.", [PARIS]),
    ("json", "```tool_code\nadd(a=1, b=-2)\n```", "", [ADD]),
    # JSON, as models without a syntax of their own are asked for it
    ("json", '{"name": "add", "arguments": {"a": 1, "b": -2}}', "", [ADD]),
    ("json", ' \n{"name": "add", "arguments": {"a": 1, "b": -2}}\n{"name": "now", "arguments": {}}', "", [ADD, ("now", {})]),
    ("json", '[{"name": "add", "arguments": {"a": 1, "b": -2}}]', "", [ADD]),
    ("json", '<tool_call>[{"name": "add", "arguments": {"a": 1, "b": -2}}]</tool_call>', "", [ADD]),
]  # fmt: skip


@pytest.mark.parametrize(("family", "reply", "text", "calls"), SAMPLES, ids=range(len(SAMPLES)))
def test_calls_wherever_the_reply_is_cut(family, reply, text, calls):
    for pieces in cuts(reply):
        assert parsed(family, pieces) == (text, calls), pieces


TEXTS = [
    ("hermes", "Hello, how are you?  \n"),
    ("hermes", '<tool_call>{"name": "unknown", "arguments": {}}</tool_call>'),
    ("hermes", "<tool_call>hm</tool_call> yes"),
    ("hermes", "x <tool_call>"),
    ("hermes", '<tool_call>{"name": "add", "argum'),
    ("hermes", '<tool_call>{"name": "add", "arguments": [1]}</tool_call>'),
    ("hermes", '<tool_call>{"name": "add", "arguments": "[1]"}</tool_call>'),
    ("hermes", "see <tool_ca"),
    ("hermes", "<tool_call>\n<function=unknown>\n</function>\n</tool_call>"),
    ("llama3", '{"city": "Paris"}'),
    ("llama3", '{"name": "Ada", "age": 36}'),
    ("llama3", "[1, 2, 3]"),
    ("llama3", "[See above] It is 5."),
    ("llama3", "<|python_tag|>import os\nprint(1)"),
    ("llama3", 'I would write {"name": "add", "parameters": {"a": 1}}'),
    ("llama3", "add(a=1)"),
    ("llama3", "[add(1, 2)]"),
    ("llama3", "[add(a=b)]"),
    ("mistral", "[TOOL_CALLS]"),
    ("mistral", '[TOOL_CALLS][{"name": "unknown", "arguments": {}}]'),
    ("mistral-args", "[TOOL_CALLS]get_weather[WHAT]{}"),
    ("gemma4", "<|tool_call>call:unknown{}<tool_call|>"),
    ("json", "```python\nprint(1)\n```"),
    ("json", '```json\n{"a": 1}\n```'),
    ("json", '{"a'),
    ("json", " \n "),
    ("json", "``"),
]


@pytest.mark.parametrize(("family", "reply"), TEXTS)
def test_what_is_no_call_is_text_and_whole(family, reply):
    for pieces in cuts(reply):
        assert read(family, pieces) == (reply, []), pieces


@pytest.mark.parametrize("family", SYNTAXES)
def test_calls_are_read_as_they_are_written(family):
    syntax = SYNTAXES[family]
    reply = syntax.around[0] + syntax.write("get_weather", TRICKY_JSON) + syntax.around[1]
    if family in ("functiongemma", "gemma4"):
        reply = reply.replace("</tool_call>", "")
    for pieces in cuts(reply):
        _, calls = parsed(family, pieces)
        assert [name for name, _ in calls] == ["get_weather"] and set(calls[0][1]) == {"city"}


def test_arguments_are_told_as_they_come():
    parser = ToolCallParser(SYNTAXES["hermes"], TOOLS, lambda: "id")
    assert parser.feed('<tool_call>{"name": "add", ') == []
    assert parser.feed('"arguments": {') == [ToolCallDelta(0, "id", "add"), ToolCallDelta(0, arguments="{")]
    assert parser.feed('"a": 1') == [ToolCallDelta(0, arguments='"a": 1')]
    assert parser.feed("}}") == [ToolCallDelta(0, arguments="}")]
    assert parser.feed("\n</tool_call>\nok") == ["ok"]


@pytest.mark.parametrize(
    ("reply", "text", "arguments"),
    [
        ('<tool_call>{"name": "add", "arguments": {"a": 1, "b', "", '{"a": 1, "b'),
        ('<tool_call>{"name": "add", "arguments": {"a": [1}</tool_call> so', " so", '{"a": [1}'),
        ('<tool_call>{"name": "add", "arguments": {\'a\': 1}}</tool_call>', "", "{'a': 1}"),
        (
            '<tool_call>{"name": "add", "arguments": {"a": 1}, "why": 1}</tool_call>',
            '"why": 1}</tool_call>',
            '{"a": 1}',
        ),
        ('<tool_call>{"name": "add", "arguments": {"a": 1}} and more', " and more", '{"a": 1}'),
    ],
)
def test_a_call_that_goes_wrong_loses_nothing(reply, text, arguments):
    for pieces in cuts(reply):
        said, calls = read("hermes", pieces)
        assert [call[1] for call in calls] == [arguments]
        assert said.strip().endswith(text.strip())


def test_a_list_that_goes_wrong_gives_the_rest_as_text():
    reply = '[TOOL_CALLS][{"name": "now", "arguments": {}}, {"name": "unknown", "arguments": {}}]'
    for pieces in cuts(reply):
        assert read("mistral", pieces) == (', {"name": "unknown", "arguments": {}}]', [("now", "{}")])


def test_one_call_is_enough_where_one_is_wanted():
    one = Tools(TOOLS.functions, parallel=False)
    reply = '<tool_call>{"name": "now", "arguments": {}}</tool_call>\n' * 2
    for pieces in cuts(reply):
        assert read("hermes", pieces, one) == ("", [("now", "{}")])


_WORDS = st.sampled_from(
    [
        "<tool_call>", "</tool_call>", '{"name": "add"', ', "arguments": ', '{"a": 1}', "}", "{", "[", "]", ",", '"', "\\",
        "[TOOL_CALLS]", "[ARGS]", "add", "(", ")", "a=1", "<|python_tag|>", "```", "json\n", "call:", ":", "<escape>",
        "<start_function_call>", "<function=add>", "<parameter=a>", "</parameter>", "</function>", " ", "\n", "text", "'", "é",
    ]
)  # fmt: skip


@settings(deadline=None)
@given(st.sampled_from(sorted(SYNTAXES)), st.lists(_WORDS, max_size=25), st.integers())
def test_whatever_comes_the_cuts_do_not_matter(family, words, seed):
    reply = "".join(words)
    whole = read(family, [reply])
    assert read(family, list(reply)) == whole
    chance = random.Random(seed)
    places = sorted(chance.randrange(len(reply) + 1) for _ in range(3))
    assert read(family, [reply[a:b] for a, b in zip([0, *places], [*places, len(reply)], strict=True)]) == whole
    if not whole[1]:
        assert whole[0] == reply


def test_a_long_call_takes_no_long_time():
    arguments = json.dumps({"city": "x" * 300_000})
    text, calls = read("hermes", ["<tool_call>", '{"name": "get_weather", "arguments": ', *arguments, "}</tool_call>"])
    assert calls == [("get_weather", arguments)] and text == ""
