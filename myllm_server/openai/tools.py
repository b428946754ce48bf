"""Tools as the OpenAI dialect has them in chats and, flatter, in responses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from myllm_core.chat.shape import check_tools
from myllm_core.errors import InvalidRequest
from myllm_core.types import Tool, Tools
from myllm_server.errors import HttpError
from myllm_server.lenient import Lenient, invalid


class Function(Lenient):
    """A function that the model may call; ``parameters`` is the JSON schema of its arguments."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    def to_core(self) -> Tool:
        """The same as the core has it."""
        return Tool(self.name, self.description or "", self.parameters, bool(self.strict))


class ChatTool(Lenient):
    """A tool of a chat."""

    type: Literal["function"]
    function: Function


class _Typed(Lenient):
    type: Literal["function"]


class ResponseTool(Function, _Typed):  # in this order the type is checked first: other kinds of tools have no name
    """A tool of a response."""


class FunctionName(Lenient):
    """Which function."""

    name: str


class ChatToolChoice(Lenient):
    """The function that a chat's reply has to call."""

    type: Literal["function"]
    function: FunctionName


class ResponseToolChoice(FunctionName):
    """The function that a response has to call."""

    type: Literal["function"]


Mode = Literal["auto", "none", "required"]


def tools_to_core(
    functions: Sequence[Function], choice: Mode | FunctionName | None, parallel: bool | None
) -> Tools | None:
    """The tools of a request; None when there are none. Raises ``HttpError`` for what no model could call."""
    only = choice.name if isinstance(choice, FunctionName) else None
    mode: Mode = "required" if isinstance(choice, FunctionName) else choice or "auto"
    if not functions:
        if mode == "required":
            raise invalid("tool_choice", "there are no tools to call; send some")
        return None
    tools = Tools(tuple(function.to_core() for function in functions), mode, only, parallel is not False)
    try:
        check_tools(tools)
    except InvalidRequest as error:
        raise HttpError(400, "invalid_request", error.message, param=error.message.partition(":")[0]) from None
    return tools
