"""What a key with the scope ``chat`` opens; everything else needs ``manage``, routes of plugins and new ones too."""

from __future__ import annotations

import re

from myllm_core.keys import Scope

_READ = frozenset({"GET", "HEAD", "OPTIONS"})
_ANY = _READ | {"POST", "PUT", "PATCH", "DELETE"}
_POST = frozenset({"POST", "OPTIONS"})

_CHAT = [
    (methods, re.compile(pattern))
    for methods, pattern in (
        (_READ, r"/|/docs(/oauth2-redirect)?|/openapi\.json|/static-offline-docs/.*"),
        (_ANY, r"/api/(chat|generate|embeddings|sessions(/.*)?)"),
        (_POST, r"/api/(tokenize|detokenize|count|count_tokens|apply-template)"),
        (_READ, r"/api/models(/[^/]+)?"),
        (_READ, r"/v1/models(/[^/]+)?"),
        (_ANY, r"/v1/(?!models\b).*"),
        # Ollama's, also at the root of a port of its own
        (_POST, r"/ollama/api/(chat|generate|embed|embeddings|show)|/api/(embed|show)"),
        (_READ, r"(/ollama)?/api/(tags|version)|/ollama/?"),
    )
]
_SESSIONS = "/api/sessions/"
_SPENDING_GET = "/api/chat"  # for EventSource


def scope_for(method: str, path: str) -> Scope:
    """The scope that a request needs."""
    return "chat" if any(method in methods and pattern.fullmatch(path) for methods, pattern in _CHAT) else "manage"


def is_read(method: str) -> bool:
    """Whether a method only reads."""
    return method in _READ


def spends(method: str, path: str) -> bool:
    """Whether a request may cost tokens."""
    return (method == "POST" and not path.startswith(_SESSIONS)) or (method == "GET" and path == _SPENDING_GET)
