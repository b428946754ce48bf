"""API keys: many, named, each with scopes and limits. Only their hashes are kept, in ``keys.json``.

A key is 256 random bits, so a plain SHA-256 can't be turned back; slow hashes are for what people can remember.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from filelock import FileLock
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from myllm_core.errors import ConfigError, InvalidRequest, NotFound, StorageError
from myllm_core.models.disk import write_atomically

Scope = Literal["chat", "manage"]
SCOPES: tuple[Scope, ...] = ("chat", "manage")
"""``chat``: use the models, with sessions of one's own. ``manage``: everything else as well."""

_LOCK_TIMEOUT = 10
_OWNER_ONLY = 0o600

Limit = Annotated[int, Field(ge=0)]


class ApiKey(BaseModel):
    """What is known of a key: everything but itself. A limit of 0 is none."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,31}$")]
    sha256: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$", repr=False)] = ""
    scopes: tuple[Scope, ...] = ("chat",)
    created_at: str = ""
    requests_per_minute: Limit = 0
    tokens_per_minute: Limit = 0
    tokens_per_day: Limit = 0

    def may(self, scope: Scope) -> bool:
        """Whether the key opens what needs ``scope``; who manages may do everything."""
        return scope in self.scopes or "manage" in self.scopes


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1]
    keys: tuple[ApiKey, ...]


def hash_key(key: bytes) -> str:
    """What is kept of a key."""
    return hashlib.sha256(key).hexdigest()


class KeyFile:
    """The keys of a data directory. Safe between threads and processes; a crash leaves the old file or the new one."""

    def __init__(self, data_dir: Path) -> None:
        self.path = data_dir / "keys.json"

    def stamp(self) -> tuple[int, int, int] | None:
        """Something that changes whenever the file does; None when there is none."""
        try:
            found = os.stat(self.path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError:
            return 0, 0, 0  # there, but out of reach: reading it says why
        return found.st_mtime_ns, found.st_ino, found.st_size

    def read(self) -> tuple[ApiKey, ...]:
        """All keys, the oldest first. Raises ``ConfigError`` for a damaged file, ``StorageError``."""
        try:
            data = self.path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return ()
        except OSError as error:
            raise StorageError(f"can't read {self.path}: {error.strerror}; check who owns it") from error
        try:
            return _Document.model_validate_json(data).keys
        except ValidationError as error:
            what = error.errors()[0]["msg"]
            raise ConfigError(f"{self.path} can't be used ({what}); mend it, or delete it and make new keys") from None

    def create(
        self,
        name: str,
        scopes: Iterable[Scope] = ("chat",),
        *,
        requests_per_minute: int = 0,
        tokens_per_minute: int = 0,
        tokens_per_day: int = 0,
    ) -> str:
        """Make a key and return it; nobody can read it again. Raises ``InvalidRequest`` when the name is taken."""
        secret = f"myllm-{secrets.token_urlsafe(32)}"
        try:
            made = ApiKey(
                name=name,
                sha256=hash_key(secret.encode()),
                scopes=tuple(scopes),
                created_at=datetime.now(UTC).isoformat(timespec="seconds"),
                requests_per_minute=requests_per_minute,
                tokens_per_minute=tokens_per_minute,
                tokens_per_day=tokens_per_day,
            )
        except ValidationError:
            raise InvalidRequest(
                f"{name[:40]!a} can't be a key's name; use 1 to 32 of A-Z a-z 0-9 _ -, a letter or digit first"
            ) from None

        def add(keys: tuple[ApiKey, ...]) -> tuple[ApiKey, ...]:
            if any(key.name == name for key in keys):
                raise InvalidRequest(f"there is a key {name} already; choose another name, or revoke it first")
            return *keys, made

        self._change(add)
        return secret

    def revoke(self, name: str) -> tuple[ApiKey, ...]:
        """Take a key away, and return those that are left. Raises ``NotFound``."""

        def drop(keys: tuple[ApiKey, ...]) -> tuple[ApiKey, ...]:
            left = tuple(key for key in keys if key.name != name)
            if len(left) == len(keys):
                raise NotFound(f"there is no key {name}; see: myllm keys list")
            return left

        return self._change(drop)

    def _change(self, change: Callable[[tuple[ApiKey, ...]], tuple[ApiKey, ...]]) -> tuple[ApiKey, ...]:
        with _locked(self.path):
            keys = change(self.read())
            document = _Document(version=1, keys=keys)
            _write(self.path, document.model_dump(mode="json"))
        return keys


class DayUse:
    """How many tokens each key has used today (UTC), in ``key-use.json``: a restart doesn't give a budget twice."""

    def __init__(self, data_dir: Path) -> None:
        self.path = data_dir / "key-use.json"

    def read(self, day: str) -> dict[str, int]:
        """Tokens by key on ``day`` (ISO date); a file that can't be understood counts as none."""
        try:
            found = json.loads(self.path.read_bytes())
            return {str(name): int(used) for name, used in found["tokens"].items()} if found["day"] == day else {}
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return {}

    def add(self, day: str, used: dict[str, int]) -> dict[str, int]:
        """Add to what was used on ``day``, by other processes too, and return the sums. Raises ``StorageError``."""
        with _locked(self.path):
            sums = self.read(day)
            for name, tokens in used.items():
                sums[name] = sums.get(name, 0) + tokens
            _write(self.path, {"day": day, "tokens": sums})
        return sums


def today() -> str:
    """The day that daily budgets are counted for: UTC."""
    return datetime.now(UTC).date().isoformat()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f"{path.name}.lock"), timeout=_LOCK_TIMEOUT):
            yield
    except OSError as error:
        why = error.strerror or "another process keeps its lock"
        raise StorageError(f"can't change {path}: {why}; check the disk and who owns the folder") from error


def _write(path: Path, document: dict[str, Any]) -> None:
    write_atomically(path, json.dumps(document, indent=1).encode(), mode=_OWNER_ONLY)
