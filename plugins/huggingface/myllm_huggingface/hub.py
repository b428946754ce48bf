"""The hub's metadata, through huggingface_hub, and its failures as myllm's errors."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from myllm_core.errors import InvalidReference, MyllmError, NetworkError, NotFound

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.hf_api import ModelInfo

TIMEOUT = 8.0
_RETRY_AFTER = 0.5


class Hub:
    """The hub that huggingface_hub is set up for: ``HF_ENDPOINT``, ``HF_TOKEN`` or a login."""

    def __init__(self) -> None:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HTTPError
        from huggingface_hub.utils import build_hf_headers

        self._api = HfApi(library_name="myllm")
        self.endpoint = str(self._api.endpoint)
        try:
            headers = build_hf_headers()
        except (HTTPError, OSError) as error:  # a login that is about to expire is renewed over the network
            raise self._unreachable(error) from error
        self.headers: Mapping[str, str] = {k: v for k, v in headers.items() if k.lower() == "authorization"}

    def model_info(self, repo: str, revision: str) -> ModelInfo:
        """What the hub says of a repository: commit, files with size and sha256, licence.

        Asks once more when the hub answers with a server error. Raises ``NotFound`` and ``NetworkError``.
        """
        return self._ask(repo, revision)

    def check_access(self, repo: str, url: str) -> None:
        """Ask whether ``url`` may be fetched: a gated repository shows its listing to everybody, its files to few.

        Raises ``NetworkError`` that says how to get access.
        """
        from huggingface_hub.errors import HfHubHTTPError, HTTPError
        from huggingface_hub.utils import get_session, hf_raise_for_status

        try:
            answer = get_session().head(url, headers=dict(self.headers), timeout=TIMEOUT, follow_redirects=False)
            hf_raise_for_status(answer)
        except HfHubHTTPError as error:
            raise self._refused(error, repo, "") from error
        except (HTTPError, OSError) as error:
            raise self._unreachable(error) from error

    def url(self, repo: str, path: str, commit: str) -> str:
        """Where a file of that commit is fetched."""
        from huggingface_hub import hf_hub_url

        return hf_hub_url(repo, path, revision=commit)

    def _ask(self, repo: str, revision: str, again: bool = True) -> ModelInfo:
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError, OfflineModeIsEnabled

        try:
            return self._api.model_info(repo, revision=revision or None, timeout=TIMEOUT, files_metadata=True)
        except HfHubHTTPError as error:
            if error.response.status_code >= 500 and again:
                time.sleep(_RETRY_AFTER)
                return self._ask(repo, revision, again=False)
            raise self._refused(error, repo, revision) from error
        except HFValidationError:
            raise InvalidReference(f"{repo!r} can't be a repository of the hub; write hf:owner/repo") from None
        except OfflineModeIsEnabled:
            raise NetworkError("HF_HUB_OFFLINE is set, so the hub isn't asked; unset it to pull from there") from None
        except (HTTPError, OSError) as error:
            raise self._unreachable(error) from error
        except (ValueError, TypeError, KeyError, AttributeError) as error:  # a proxy's login page, not a hub
            raise NetworkError(
                f"{self.endpoint} didn't answer like a model hub ({type(error).__name__}: {error}); "
                "check HF_ENDPOINT, and whether the network wants a login"
            ) from error

    def _refused(self, error: HfHubHTTPError, repo: str, revision: str) -> MyllmError:
        from huggingface_hub.errors import DisabledRepoError, GatedRepoError, RevisionNotFoundError

        status = error.response.status_code
        if isinstance(error, GatedRepoError):
            return NetworkError(
                f"{repo} is gated: accept its licence at {self.endpoint}/{repo}, "
                "then set HF_TOKEN or run: hf auth login",
                repo=repo,
                status=status,
            )
        if isinstance(error, RevisionNotFoundError):
            return NotFound(f"{repo} has no revision {revision}; see {self.endpoint}/{repo}/commits/main", repo=repo)
        if isinstance(error, DisabledRepoError):
            return NotFound(f"{repo} was disabled by the hub; choose another repository", repo=repo)
        if status in (401, 404):
            return self._no_such_repo(repo, status)
        if status == 403:
            return NetworkError(
                f"the hub refuses {repo} to this token; ask for access at {self.endpoint}/{repo}", status=status
            )
        if status == 429:
            return NetworkError("the hub has had too many requests (429); wait a minute, or set HF_TOKEN", status=429)
        return NetworkError(f"the hub answers {status} for {repo}; try again later", repo=repo, status=status)

    def _no_such_repo(self, repo: str, status: int) -> MyllmError:
        # The hub answers 401 for a repository that doesn't exist, too: it doesn't tell strangers what is private.
        if status == 401 and self.headers:
            return NetworkError(
                f"the hub doesn't accept the token for {repo}; renew HF_TOKEN or run: hf auth login", status=status
            )
        return NotFound(
            f"there is no model {repo} at {self.endpoint}, or it is private (then set HF_TOKEN); "
            f"search: {self.endpoint}/models?search={repo.partition('/')[2]}",
            repo=repo,
        )

    def _unreachable(self, error: Exception) -> NetworkError:
        reason = " ".join(str(error).split()) or type(error).__name__
        return NetworkError(
            f"{self.endpoint} can't be reached ({reason}); check the connection, the proxy settings or HF_ENDPOINT",
            endpoint=self.endpoint,
        )
