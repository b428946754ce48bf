"""What every command is given: the global options, and what is made from them when it is first asked for."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from myllm_cli.terminal import say

if TYPE_CHECKING:
    from myllm_core.models.store import ModelStore
    from myllm_core.plugins import Plugins
    from myllm_core.settings import Settings


@dataclass
class Cli:
    """The global options, and the settings, plugins and models that follow from them, each read at its first use."""

    models_dir: Path | None = None
    verbose: bool = False

    @cached_property
    def settings(self) -> Settings:
        """The settings, with the command line's on top. Raises ``ConfigError``."""
        return self.settings_with()

    def settings_with(self, **overrides: object) -> Settings:
        """The settings with a command's own options on top; None means not given. Raises ``ConfigError``."""
        from myllm_core.settings import load_settings

        return load_settings(models_dir=self.models_dir, **overrides)

    @cached_property
    def plugins(self) -> Plugins:
        """The installed plugins, none imported yet; a broken one is named on standard error when it is met."""
        from myllm_core.plugins import load_plugins

        return load_plugins(self.settings.disabled_plugins, lambda text: say(f"myllm: {' '.join(text.split())}"))

    @cached_property
    def models(self) -> ModelStore:
        """The installed models."""
        from myllm_core.models.store import ModelStore

        return ModelStore(self.settings.models_dir)
