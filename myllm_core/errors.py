"""Every error that myllm raises on purpose.

Each class says who must act, by its HTTP status and its exit code; each message says what to do next.

::

    MyllmError                  500  exit 1   a bug, or something nobody foresaw
    ├── InvalidRequest          400  exit 2   the caller's input can't be used
    │   ├── InvalidOption       422  exit 2   an option is unknown, of the wrong type or out of range
    │   ├── InvalidReference    400  exit 2   a model name or reference that can't be one
    │   ├── TemplateError       400  exit 1   the model's chat template can't render these messages
    │   ├── ContextLengthError  400  exit 8   the prompt doesn't fit, with both numbers
    │   └── UnsupportedError    400  exit 2   this engine can't do what was asked
    ├── ConfigError             500  exit 2   a setting or a config file is wrong
    ├── NotFound                404  exit 3   no such thing
    │   ├── ModelNotFound       404  exit 3
    │   └── SessionNotFound     404  exit 3
    ├── SessionConflict         409  exit 1   another request moved the session on
    ├── NetworkError            502  exit 4   a source couldn't be reached or broke off
    ├── IntegrityError          422  exit 5   a file isn't what it should be
    ├── StorageError            507  exit 6   disk full, or no permission to write
    ├── StoreError              503  exit 6   the session store can't be used
    ├── EngineError             500  exit 7   the engine failed at this request
    │   ├── EngineMissing       501  exit 7   no installed engine can load this model
    │   ├── OutOfMemory         507  exit 7   the model needs more memory than there is
    │   └── WorkerDied          502  exit 7   the model's process ended
    ├── PluginError             500  exit 1   an installed plugin can't be used
    ├── Overloaded              503  exit 1   too much to do: try again in ``retry_after`` seconds
    └── DeadlineExceeded        504  exit 1   the request's time was up
"""

from __future__ import annotations

from typing import Any, ClassVar


class MyllmError(Exception):
    """An error with a stable ``code``, an HTTP status and an exit code.

    ``data`` holds the numbers and names behind the message (JSON values only), so that the error
    survives the trip from a worker process and a client can act on it.
    """

    code: ClassVar[str] = "internal_error"
    http_status: ClassVar[int] = 500
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, **data: Any) -> None:
        super().__init__(message)
        self.message = message
        self.data = data

    def __str__(self) -> str:
        return self.message

    def to_dict(self) -> dict[str, Any]:
        """The error as JSON values: ``code``, ``message`` and, when there is any, ``data``."""
        body: dict[str, Any] = {"code": self.code, "message": self.message}
        if self.data:
            body["data"] = self.data
        return body


class InvalidRequest(MyllmError):
    """The caller's input can't be used as it is."""

    code, http_status, exit_code = "invalid_request", 400, 2


class InvalidOption(InvalidRequest):
    """An option is unknown, of the wrong type or out of range."""

    code, http_status = "invalid_option", 422


class InvalidReference(InvalidRequest):
    """A model name or reference that can't be one."""

    code = "invalid_reference"


class TemplateError(InvalidRequest):
    """The model's chat template refuses or fails to render these messages."""

    code, exit_code = "template_error", 1


class ContextLengthError(InvalidRequest):
    """The prompt doesn't fit the context; ``data`` has ``prompt_tokens`` and ``context_size``."""

    code, exit_code = "context_length", 8


class UnsupportedError(InvalidRequest):
    """The engine or model can't do what was asked."""

    code = "unsupported"


class ConfigError(MyllmError):
    """A setting, an environment variable or the config file is wrong."""

    code, exit_code = "invalid_config", 2


class NotFound(MyllmError):
    """Something that was named doesn't exist."""

    code, http_status, exit_code = "not_found", 404, 3


class ModelNotFound(NotFound):
    """No model of that name is installed or known."""

    code = "model_not_found"


class SessionNotFound(NotFound):
    """No session of that id exists."""

    code = "session_not_found"


class SessionConflict(MyllmError):
    """Another request moved the session on; read it again."""

    code, http_status = "session_conflict", 409


class NetworkError(MyllmError):
    """A source couldn't be reached, refused, or broke off."""

    code, http_status, exit_code = "network_error", 502, 4


class IntegrityError(MyllmError):
    """A file isn't what it should be: wrong hash, wrong size, not a model, unsafe."""

    code, http_status, exit_code = "integrity_error", 422, 5


class StorageError(MyllmError):
    """The disk is full, or a folder can't be written."""

    code, http_status, exit_code = "storage_error", 507, 6


class StoreError(MyllmError):
    """The session store can't be used."""

    code, http_status, exit_code = "store_unavailable", 503, 6


class EngineError(MyllmError):
    """The engine failed at this request."""

    code, exit_code = "engine_error", 7


class EngineMissing(EngineError):
    """No installed engine can load this model; the message holds the command that installs one."""

    code, http_status = "engine_missing", 501


class OutOfMemory(EngineError):
    """The model needs more memory than there is; ``data`` has ``needed`` and ``free`` in bytes."""

    code, http_status = "out_of_memory", 507


class WorkerDied(EngineError):
    """The process that ran the model ended; the next request starts it again."""

    code, http_status = "engine_died", 502


class PluginError(MyllmError):
    """An installed plugin can't be used."""

    code = "plugin_error"


class Overloaded(MyllmError):
    """Too much to do; try again in ``data["retry_after"]`` seconds."""

    code, http_status = "overloaded", 503


class DeadlineExceeded(MyllmError):
    """The request's time was up."""

    code, http_status = "deadline_exceeded", 504


def _tree(root: type[MyllmError]) -> dict[str, type[MyllmError]]:
    found = {root.code: root}
    for child in root.__subclasses__():
        found |= _tree(child)
    return found


ERRORS: dict[str, type[MyllmError]] = _tree(MyllmError)
"""Every error class by its code."""


def error_from_dict(body: dict[str, Any]) -> MyllmError:
    """The error that ``to_dict`` wrote; an unknown code becomes a plain ``MyllmError``."""
    cls = ERRORS.get(str(body.get("code")), MyllmError)
    return cls(str(body.get("message", "")), **dict(body.get("data") or {}))
