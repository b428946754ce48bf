"""A Jinja environment for templates that come with models: no code, bounded work, bounded output.

Jinja's immutable sandbox stops attribute tricks; it doesn't stop a template from working for ever or from
building a string of gigabytes. So results of operators, of string methods and of padding filters are bounded
before they are made, and the thread that renders is interrupted when its time is up.
"""

from __future__ import annotations

import ctypes
import json
import re
import threading
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any, TypeVar

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from myllm_core.errors import TemplateError

T = TypeVar("T")

TIME_LIMIT = 3.0
SIZE_LIMIT = 16 * 2**20
_PADDING = frozenset({"center", "ljust", "rjust", "zfill", "expandtabs"})


class _TimeUp(BaseException):
    """Raised inside the rendering thread."""


def _too_large() -> SecurityError:
    return SecurityError("the template makes a value that is too large")


def _size(value: Any) -> int:
    return len(value) if isinstance(value, str | bytes | list | tuple) else 0


def _check_method(owner: Any, name: str, args: tuple[Any, ...]) -> None:
    """Refuse calls of str methods whose result would be out of all proportion."""
    if name in _PADDING and any(isinstance(arg, int) and arg > SIZE_LIMIT // 16 for arg in args):
        raise _too_large()
    if name == "replace" and len(args) >= 2:
        times = _size(owner) // max(1, _size(args[0])) + 1
        if times * _size(args[1]) > SIZE_LIMIT:
            raise _too_large()
    parts = args[0] if name == "join" and args and isinstance(args[0], list | tuple) else ()
    if sum(_size(part) + _size(owner) for part in parts) > SIZE_LIMIT:
        raise _too_large()


def _check_format(text: Any) -> None:
    """Refuse format strings with a width that is large or computed."""
    if isinstance(text, str | bytes) and re.search(r"\d{5}|:[^}]*\{|\*", str(text)):
        raise _too_large()


def _plus(*parts: Any) -> str:
    """The ``~`` operator with a bound on its result."""
    texts = [str(part) for part in parts]
    if sum(map(len, texts)) > SIZE_LIMIT:
        raise _too_large()
    return "".join(texts)


class _BoundConcat(NodeTransformer):
    """Turns ``a ~ b``, which Jinja compiles to an unguarded join, into a call of ``_plus``."""

    def visit_Concat(self, node: nodes.Concat) -> nodes.Call:
        self.generic_visit(node)
        function = nodes.Name("__plus__", "load", lineno=node.lineno)
        return nodes.Call(function, node.nodes, [], None, None, lineno=node.lineno)


class _Generation(Extension):
    """``{% generation %}…{% endgeneration %}``: marks for training, nothing to do when generating."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Keep the body, drop the marks."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        return super()._generate(_BoundConcat().visit(source), *args, **kwargs)

    def call_binop(self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" and (abs(left) > 2**32 or abs(right) > 64):
            raise _too_large()
        if operator == "*":
            for one, other in ((left, right), (right, left)):
                if isinstance(other, int) and _size(one) * other > SIZE_LIMIT:
                    raise _too_large()
            if isinstance(left, int) and isinstance(right, int) and max(abs(left), abs(right)) > 2**256:
                raise _too_large()
        if operator == "+" and _size(left) + _size(right) > SIZE_LIMIT:
            raise _too_large()
        if operator == "%":
            _check_format(left)
        return super().call_binop(context, operator, left, right)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        if wrapped is not None:
            _check_format(value.__self__)
        return wrapped

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, str):
            _check_method(owner, getattr(__obj, "__name__", ""), args)
        return super().call(__context, __obj, *args, **kwargs)


def _raise_exception(message: str) -> None:
    raise TemplateError(f"the model's chat template refuses these messages: {message}")


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=min(indent, 16) if indent else indent, **options)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def _bounded_filter(function: Callable[..., Any]) -> Callable[..., Any]:
    def bounded(value: Any, *args: Any, **kwargs: Any) -> Any:
        numbers = [arg for arg in (*args, *kwargs.values()) if isinstance(arg, int)]
        if any(abs(number) > 10_000 for number in numbers):
            raise _too_large()
        return function(value, *args, **kwargs)

    return bounded


def _join(value: Iterable[Any], d: str = "", attribute: str | None = None) -> str:
    parts = [str(item[attribute] if attribute else item) for item in value]
    _check_method(d, "join", (parts,))
    return d.join(parts)


def _replace(value: Any, old: str, new: str, count: int = -1) -> str:
    text = str(value)
    _check_method(text, "replace", (old, new))
    return text.replace(old, new, count)


def compile_template(source: str) -> jinja2.Template:
    """Compile a chat template as the common ones expect. Raises ``TemplateError`` for a syntax error."""
    environment = _Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation], autoescape=False
    )
    for name in ("center", "indent"):
        environment.filters[name] = _bounded_filter(environment.filters[name])
    for name in ("format", "xmlattr", "urlize", "wordwrap", "pprint", "batch", "slice"):
        environment.filters.pop(name, None)
    environment.globals.pop("lipsum", None)
    environment.filters |= {"tojson": _tojson, "join": _join, "replace": _replace}
    environment.globals |= {
        "raise_exception": _raise_exception,
        "strftime_now": _strftime_now,
        "__plus__": _plus,
    }
    try:
        return environment.from_string(source)
    except (jinja2.TemplateError, RecursionError) as error:
        raise TemplateError(f"the model's chat template can't be read: {error}; pull another version of it") from None


def render(template: jinja2.Template, values: dict[str, Any]) -> str:
    """Render within the limits. Raises ``TemplateError`` when it fails, takes too long or writes too much."""
    try:
        return _within(TIME_LIMIT, lambda: _collect(template, values))
    except _TimeUp:
        raise TemplateError(f"the model's chat template takes longer than {TIME_LIMIT:g} s; it looks broken") from None
    except TemplateError:
        raise
    except MemoryError:
        raise TemplateError("the model's chat template needs too much memory; it looks broken") from None
    except (
        jinja2.TemplateError,
        RecursionError,
        TypeError,
        ValueError,
        LookupError,
        ArithmeticError,
        AttributeError,
    ) as e:
        raise TemplateError(
            f"the model's chat template fails on these messages: {type(e).__name__}: {e}"[:500]
        ) from None


def _collect(template: jinja2.Template, values: dict[str, Any]) -> str:
    parts: list[str] = []
    size = 0
    for part in template.generate(**values):
        size += len(part)
        if size > SIZE_LIMIT:
            raise TemplateError("the model's chat template writes more than 16 MiB; it looks broken")
        parts.append(part)
    return "".join(parts)


def _within(seconds: float, work: Callable[[], T]) -> T:
    """Run ``work`` on this thread and raise ``_TimeUp`` inside it when the time is up."""
    thread = ctypes.c_ulong(threading.get_ident())
    lock = threading.Lock()
    state = {"done": False, "fired": False}

    def fire() -> None:
        with lock:
            if not state["done"]:
                state["fired"] = True
                ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, ctypes.py_object(_TimeUp))

    timer = threading.Timer(seconds, fire)
    timer.daemon = True
    timer.start()
    try:
        result = work()
        with lock:
            state["done"] = True
        while state["fired"]:  # it fired at the last moment: take the exception here, not somewhere later
            pass
        return result
    finally:
        timer.cancel()
        with lock:
            state["done"] = True
