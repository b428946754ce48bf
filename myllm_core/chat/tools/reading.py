"""Readers of tool calls as models write them, character by character, so that arguments can be told as they come.

A reader is a generator that is sent one character after the other. It tells its ``Calls`` what it finds, returns behind
the last character that belongs to the calls, and raises ``NoCall`` at the first one that can't.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Generator
from typing import Any, Protocol, TypeVar

T = TypeVar("T")
Reading = Generator[None, str, T]
Write = Callable[[str], None]

_SPACE = " \t\r\n"
_ARGUMENTS = ("arguments", "parameters")
_MOST_NAME = 64


class NoCall(Exception):
    """What is read isn't a call, or not any more."""


class Calls(Protocol):
    """What readers tell: calls one after the other, their arguments as pieces of JSON text."""

    def begin(self, name: str) -> None:
        """A call of this function begins. Raises ``NoCall`` when there is no such function."""

    def write(self, text: str) -> None:
        """More of its arguments."""

    def end(self) -> None:
        """The arguments are whole."""

    def settle(self) -> None:
        """What has been read belongs to the calls that were told, whatever follows."""

    def schema(self, name: str) -> dict[str, Any]:
        """The JSON schema of a function's arguments."""


Reader = Callable[[Calls], Reading[None]]


def _skip_space(c: str = " ") -> Reading[str]:
    while c in _SPACE:
        c = yield
    return c


def _expect(text: str) -> Reading[None]:
    for expected in text:
        if (yield) != expected:
            raise NoCall


def _name(c: str, end: str) -> Reading[tuple[str, str]]:
    """A function's name that begins with ``c``, and which of the characters of ``end`` came behind it."""
    name = ""
    while c not in end:
        if not (c.isalnum() or c in "_.-") or len(name) >= _MOST_NAME:
            raise NoCall
        name += c
        c = yield
    return name, c


def _copy_string(write: Write) -> Reading[None]:
    """Copy a JSON string whose opening quote has been copied."""
    while True:
        c = yield
        write(c)
        if c == "\\":
            write((yield))
        elif c == '"':
            return


def _string() -> Reading[str]:
    """The value of a JSON string whose opening quote has been read."""
    raw = ['"']
    yield from _copy_string(raw.append)
    try:
        return str(json.loads("".join(raw), strict=False))
    except ValueError:
        raise NoCall from None


def _copy_nested(opening: str, write: Write) -> Reading[None]:
    """Copy a JSON object or array. What is wrong inside is copied too, but for ``<``, where a marker begins."""
    write(opening)
    depth = 1
    while depth:
        c = yield
        if c == "<":
            raise NoCall
        write(c)
        if c == '"':
            yield from _copy_string(write)
        else:
            depth += (c in "{[") - (c in "}]")


def _copy_value(c: str, write: Write) -> Reading[str]:
    """Copy any JSON value; the character behind it, a space when none was read."""
    if c == '"':
        write(c)
        yield from _copy_string(write)
        return " "
    if c in "{[":
        yield from _copy_nested(c, write)
        return " "
    while c not in ",}]<" + _SPACE:
        write(c)
        c = yield
    return c


def _copy_arguments(c: str, write: Write) -> Reading[None]:
    """Copy an object; one inside a JSON string is unpacked, and null is an empty one."""
    if c == "{":
        yield from _copy_nested(c, write)
    elif c == '"':
        text = yield from _string()
        if not text.lstrip().startswith("{"):
            raise NoCall
        write(text)
    elif c == "n":
        yield from _expect("ull")
        write("{}")
    else:
        raise NoCall


class _JsonCall:
    """What is known so far of a call that is a JSON object."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._name = self._kept = ""
        self._told = False

    def read_member(self, key: str, c: str) -> Reading[str]:
        """Read the value of ``key``, which begins with ``c``; the character behind it, a space when none was read."""
        if key == "function" and c == "{":
            yield from json_call(self._calls)
            self._told = True
        elif key in ("name", "function"):
            yield from self._read_name(c)
        elif key in _ARGUMENTS and not self._told and not self._kept:
            yield from self._read_arguments(c)
        elif key in ("id", "type"):
            return (yield from _copy_value(c, lambda text: None))
        else:
            raise NoCall
        return " "

    def _read_name(self, c: str) -> Reading[None]:
        if self._name or c != '"':
            raise NoCall
        self._name = yield from _string()
        if self._kept:
            self._tell(self._kept)

    def _read_arguments(self, c: str) -> Reading[None]:
        if self._name and c == "{":
            self._calls.begin(self._name)
            yield from _copy_nested(c, self._calls.write)
            self._calls.end()
            self._told = True
            return
        held: list[str] = []
        yield from _copy_arguments(c, held.append)
        self._kept = "".join(held)
        if self._name:
            self._tell(self._kept)

    def _tell(self, arguments: str) -> None:
        self._calls.begin(self._name)
        self._calls.write(arguments)
        self._calls.end()
        self._told = True

    def end(self) -> None:
        """The object is whole."""
        if not self._told:
            self._tell("{}")
        self._calls.settle()


def json_call(calls: Calls) -> Reading[None]:
    """A call as an object with ``name`` and ``arguments``, in any order; its opening brace has been read."""
    call = _JsonCall(calls)
    c = ","
    while c != "}":
        if c != ",":
            raise NoCall
        key, c = yield from _key()
        c = yield from _skip_space((yield from call.read_member(key, c)))
    call.end()


def _key() -> Reading[tuple[str, str]]:
    """A key and the first character of its value."""
    if (yield from _skip_space()) != '"':
        raise NoCall
    key = yield from _string()
    if (yield from _skip_space()) != ":":
        raise NoCall
    return key, (yield from _skip_space())


def _python_call(calls: Calls, c: str) -> Reading[None]:
    """A call as Python: ``name(argument=value)``, also ``name.call(…)`` and ``print(name(…))``."""
    name, _ = yield from _name(c, "(")
    if name == "print":
        yield from _python_call(calls, (yield from _skip_space()))
        if (yield from _skip_space()) != ")":
            raise NoCall
        return
    text: list[str] = []
    yield from _copy_parentheses(text.append)
    arguments = _keywords("".join(text))
    calls.begin(name.removesuffix(".call"))
    calls.write(arguments)
    calls.end()


def _copy_parentheses(write: Write) -> Reading[None]:
    write("(")
    depth, quote = 1, ""
    while depth:
        c = yield
        write(c)
        if quote:
            if c == "\\":
                write((yield))
            elif c == quote:
                quote = ""
        elif c in "'\"":
            quote = c
        else:
            depth += (c in "([{") - (c in ")]}")


def _keywords(text: str) -> str:
    """The JSON object that a Python call's keyword arguments are; they must be literals."""
    try:
        call = ast.parse("f" + text, mode="eval").body
        if not isinstance(call, ast.Call) or call.args:
            raise NoCall
        given = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
        return json.dumps(given, ensure_ascii=False)
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        raise NoCall from None


def _one_or_more(calls: Calls, c: str) -> Reading[None]:
    """A call, or a list of calls, as JSON or as Python; ``c`` is its first character."""
    if c != "[":
        yield from _json_or_python(calls, c)
        return
    c = ","
    while c == ",":
        yield from _json_or_python(calls, (yield from _skip_space()))
        c = yield from _skip_space()
    if c != "]":
        raise NoCall


def _json_or_python(calls: Calls, c: str) -> Reading[None]:
    yield from json_call(calls) if c == "{" else _python_call(calls, c)


def plain_calls(calls: Calls) -> Reading[None]:
    """A call or a list of calls without a marker, or in a block between lines of three backticks."""
    c = yield
    if c == "`":
        yield from _expect("``")
        _, c = yield from _name((yield), _SPACE)
        c = yield from _skip_space(c)
    yield from _one_or_more(calls, c)


def marked_calls(calls: Calls) -> Reading[None]:
    """What stands behind a marker: calls as JSON, as Python, or as ``<function=…>`` elements."""
    c = yield from _skip_space()
    yield from _element_call(calls) if c == "<" else _one_or_more(calls, c)


def _element_call(calls: Calls) -> Reading[None]:
    """A call as ``<function=name><parameter=key>value</parameter></function>``; ``<`` has been read."""
    yield from _expect("function=")
    name, _ = yield from _name((yield), ">")
    calls.begin(name)
    properties = calls.schema(name).get("properties") or {}
    before = "{"
    while True:
        if (yield from _skip_space()) != "<":
            raise NoCall
        tag = yield from _until(">")
        if tag == "/function":
            break
        kind, _, key = tag.partition("=")
        if kind != "parameter":
            raise NoCall
        value = (yield from _until("</parameter>")).removeprefix("\n").removesuffix("\n")
        calls.write(f"{before}{json.dumps(key, ensure_ascii=False)}: {_typed(value, properties.get(key))}")
        before = ", "
    calls.write("{}" if before == "{" else "}")
    calls.end()
    calls.settle()


def _until(end: str) -> Reading[str]:
    text: list[str] = []
    while True:
        c = yield
        text.append(c)
        if c == end[-1] and "".join(text[-len(end) :]) == end:
            return "".join(text[: -len(end)])


def _typed(text: str, schema: Any) -> str:
    """Text as the JSON value that the schema of its parameter asks for."""
    kind = schema.get("type") if isinstance(schema, dict) else None
    if kind != "string":
        try:
            json.loads(text)
            return text.strip()
        except (ValueError, RecursionError):
            pass  # then it is a string
    return json.dumps(text, ensure_ascii=False)


def mistral_calls(calls: Calls) -> Reading[None]:
    """Behind Mistral's marker: a list of calls, or ``name[ARGS]{…}``, in some with ``[CALL_ID]id`` between."""
    c = yield from _skip_space()
    if c in "[{":
        yield from _one_or_more(calls, c)
        return
    name, c = yield from _name(c, "[{")
    while c == "[":
        tag = yield from _until("]")
        c = yield
        if tag == "CALL_ID":
            _, c = yield from _name(c, "[")
        elif tag == "ARGS":
            c = yield from _skip_space(c)
            break
        else:
            raise NoCall
    if c != "{":
        raise NoCall
    calls.begin(name)
    yield from _copy_nested(c, calls.write)
    calls.end()


def gemma_calls(quote: str) -> Reader:
    """A reader of ``call:name{key:value}``, where texts stand between two of ``quote`` and keys have none."""

    def read(calls: Calls) -> Reading[None]:
        c = yield from _skip_space()
        if c != "c":
            raise NoCall
        yield from _expect("all:")
        name, c = yield from _name((yield from _skip_space()), "{")
        calls.begin(name)
        yield from _gemma_object(quote, calls.write)
        calls.end()

    return read


def _gemma_object(quote: str, write: Write) -> Reading[None]:
    write("{")
    c = yield from _skip_space()
    before = ""
    while c != "}":
        key = yield from _gemma_key(c, quote)
        write(f"{before}{json.dumps(key, ensure_ascii=False)}: ")
        before = ", "
        c = yield from _skip_space((yield from _gemma_value((yield from _skip_space()), quote, write)))
        if c == ",":
            c = yield from _skip_space()
        elif c != "}":
            raise NoCall
    write("}")


def _gemma_key(c: str, quote: str) -> Reading[str]:
    if c in ('"', quote[0]):
        key = yield from _string() if c == '"' else _quoted(quote)
        if (yield from _skip_space()) != ":":
            raise NoCall
        return key
    return (c + (yield from _until(":"))).strip()


def _quoted(quote: str) -> Reading[str]:
    yield from _expect(quote[1:])
    return (yield from _until(quote))


def _gemma_value(c: str, quote: str, write: Write) -> Reading[str]:
    """Write a value as JSON; the character behind it, a space when none was read."""
    if c == quote[0]:
        write(json.dumps((yield from _quoted(quote)), ensure_ascii=False))
        return " "
    if c == "{":
        yield from _gemma_object(quote, write)
        return " "
    if c == "[":
        yield from _gemma_list(quote, write)
        return " "
    if c == '"':
        return (yield from _copy_value(c, write))
    bare: list[str] = []
    while c not in ",}]":
        bare.append(c)
        c = yield
    write(_typed("".join(bare).strip(), None))
    return c


def _gemma_list(quote: str, write: Write) -> Reading[None]:
    write("[")
    c = yield from _skip_space()
    while c != "]":
        c = yield from _skip_space((yield from _gemma_value(c, quote, write)))
        if c == ",":
            write(", ")
            c = yield from _skip_space()
        elif c != "]":
            raise NoCall
    write("]")
