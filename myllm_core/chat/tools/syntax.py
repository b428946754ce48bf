"""How families of models write tool calls, and which family a model is of.

Each follows what the family's authors document with their models and chat templates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from myllm_core.chat.tools.reading import Reader, gemma_calls, marked_calls, mistral_calls, plain_calls


@dataclass(frozen=True, slots=True)
class Syntax:
    """How calls are written.

    ``opens`` are the markers that begin one, each with the reader of what follows; ``closes`` are those that may end
    one. ``plain`` reads calls without a marker, which begin a reply. A call is written as ``form``: what stands before
    its name, between name and arguments, and behind them; several stand between the two of ``around`` with ``between``
    between them, or ``between`` is None where one reply has one call. ``others`` are more control tokens inside calls.
    ``nine`` says that ids of calls must have nine letters and digits.
    """

    opens: Mapping[str, Reader]
    form: tuple[str, str, str]
    closes: tuple[str, ...] = ()
    plain: Reader | None = None
    around: tuple[str, str] = ("", "")
    between: str | None = ""
    others: tuple[str, ...] = ()
    nine: bool = False

    def write(self, name: str, arguments: str) -> str:
        """A call as a model of this family writes it."""
        return f"{self.form[0]}{name}{self.form[1]}{arguments}{self.form[2]}"


_OBJECT = ('{"name": "', '", "arguments": ', "}")

SYNTAXES: dict[str, Syntax] = {
    "hermes": Syntax(
        {"<tool_call>": marked_calls},
        ('<tool_call>\n{"name": "', '", "arguments": ', "}\n</tool_call>"),
        ("</tool_call>",),
        between="\n",
    ),
    "llama3": Syntax(
        {"<|python_tag|>": marked_calls},
        ('{"name": "', '", "parameters": ', "}"),
        ("<|eom_id|>",),
        plain_calls,
        between=None,
    ),
    "mistral": Syntax({"[TOOL_CALLS]": mistral_calls}, _OBJECT, around=("[TOOL_CALLS][", "]"), between=", ", nine=True),
    "mistral-args": Syntax(
        {"[TOOL_CALLS]": mistral_calls}, ("[TOOL_CALLS]", "[ARGS]", ""), others=("[ARGS]", "[CALL_ID]"), nine=True
    ),
    "functiongemma": Syntax(
        {"<start_function_call>": gemma_calls("<escape>")},
        ("<start_function_call>call:", "", "<end_function_call>"),
        ("<end_function_call>",),
        others=("<escape>",),
    ),
    "gemma4": Syntax(
        {"<|tool_call>": gemma_calls('<|"|>')},
        ("<|tool_call>call:", "", "<tool_call|>"),
        ("<tool_call|>",),
        others=('<|"|>',),
    ),
    "json": Syntax(
        {"<tool_call>": marked_calls, "```tool_code": marked_calls, "```tool_call": marked_calls},
        _OBJECT,
        ("</tool_call>", "```"),
        plain_calls,
        between="\n",
    ),
}
"""Every syntax by its family's name; ``json`` is for models of no known family, Gemma's before tools among them."""

_MARKS = (
    ("[ARGS]", "mistral-args"),
    ("[TOOL_CALLS]", "mistral"),
    ("<start_function_call>", "functiongemma"),
    ("<|tool_call>", "gemma4"),
    ("<tool_call>", "hermes"),
    ("<|python_tag|>", "llama3"),
    ("ipython", "llama3"),
)


def choose_syntax(template: str, knows_tools: bool) -> str:
    """The name of the syntax that a chat template's words tell; ``json`` when it knows nothing of tools."""
    return next((name for mark, name in _MARKS if mark in template), "json") if knows_tools else "json"
