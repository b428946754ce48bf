"""The files of a model as the Hugging Face Hub lays them out: configurations, chat template, tokenizer."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

from myllm_core.errors import IntegrityError
from myllm_core.models.config_file import read_config, read_config_list
from myllm_core.models.disk import open_regular, storage_errors
from myllm_core.models.manifest import Model

_MAX_TEMPLATE = 2**20
_CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx")


class HubFiles:
    """Finds and reads files of one model. Only those that its manifest names are ever looked at."""

    def __init__(self, model: Model) -> None:
        self._paths = sorted(model.paths, key=lambda path: len(path.parts))  # the model's own before those of its parts
        self._read: dict[Path, dict[str, Any]] = {}

    def find(self, name: str) -> Path | None:
        """The file of that name, such as ``config.json`` or ``1_Pooling/config.json``, that lies least deep."""
        parts = PurePosixPath(name).parts
        return next((path for path in self._paths if path.parts[-len(parts) :] == parts), None)

    def need(self, name: str) -> Path:
        """As ``find``. Raises ``IntegrityError`` when there is none."""
        path = self.find(name)
        if path is None:
            raise IntegrityError(f"the model comes without its {name}; pull the whole repository")
        return path

    def config(self, name: str) -> dict[str, Any]:
        """The object in a configuration file, checked as ``read_config`` does; empty when there is no such file."""
        path = self.find(name)
        if path is None:
            return {}
        if path not in self._read:
            self._read[path] = read_config(path)
        return self._read[path]

    def config_list(self, name: str) -> list[dict[str, Any]]:
        """The objects in a file that lists some, such as ``modules.json``; empty when there is no such file."""
        path = self.find(name)
        return [] if path is None else read_config_list(path)

    @property
    def text_config(self) -> dict[str, Any]:
        """``config.json``, with what it says of the language part of a model with several laid over it."""
        config = self.config("config.json")
        inner = config.get("text_config")
        return {**config, **inner} if isinstance(inner, dict) else config

    @property
    def trained_context(self) -> int:
        """Tokens that the model was trained for; 0 when its configuration doesn't say."""
        config = self.text_config
        values = (config.get(key) for key in _CONTEXT_KEYS)
        return next((value for value in values if type(value) is int and 0 < value < 2**31), 0)

    def chat_template(self) -> str | None:
        """The template for conversations: from a file of its own, else from the tokenizer's configuration."""
        path = self.find("chat_template.jinja")
        if path is not None:
            with storage_errors(f"read {path}"), open_regular(path) as file:
                data = file.read(_MAX_TEMPLATE + 1)
            if len(data) > _MAX_TEMPLATE:
                raise IntegrityError(f"{path.name} is larger than {_MAX_TEMPLATE // 2**20} MiB")
            return data.decode(errors="replace")
        for name in ("tokenizer_config.json", "chat_template.json"):
            template = self.config(name).get("chat_template")
            if isinstance(template, list):  # several, by name
                named = {item.get("name"): item.get("template") for item in template if isinstance(item, dict)}
                template = named.get("default")
            if isinstance(template, str) and template:
                return template
        return None

    def token_text(self, key: str) -> str:
        """How a token is written that the tokenizer's configuration names, such as ``eos_token``; empty for none."""
        return _content(self.config("tokenizer_config.json").get(key))

    def special_texts(self) -> frozenset[str]:
        """Texts that the tokenizer's configuration makes control tokens, beside those that ``tokenizer.json`` does."""
        config = self.config("tokenizer_config.json")
        found = {self.token_text(key) for key in config if key.endswith("_token")}
        decoder = config.get("added_tokens_decoder")
        entries = decoder.values() if isinstance(decoder, dict) else ()
        found |= {_content(entry) for entry in entries if isinstance(entry, dict) and entry.get("special") is True}
        for key in ("additional_special_tokens", "extra_special_tokens"):
            more = config.get(key)
            values = more.values() if isinstance(more, dict) else more if isinstance(more, list) else ()
            found |= {_content(value) for value in values}
        return frozenset(found - {""})

    def end_tokens(self) -> frozenset[int]:
        """Ids of tokens that end a reply: the generation configuration's, else the configuration's."""
        for config in (self.config("generation_config.json"), self.config("config.json"), self.text_config):
            value = config.get("eos_token_id")
            values = value if isinstance(value, list) else [value]
            if found := frozenset(item for item in values if type(item) is int and item >= 0):
                return found
        return frozenset()


def _content(value: object) -> str:
    """A token's text, which stands alone or in an object with more about it."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else ""
