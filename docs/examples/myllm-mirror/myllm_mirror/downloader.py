"""``mirror:URL#NAME``: a model of a web folder that has an ``index.json``."""

import json
import urllib.error
import urllib.parse
import urllib.request

from myllm_core import Downloader, RemoteFile, Resolution
from myllm_core.errors import InvalidReference, NetworkError, NotFound

MAX_INDEX = 10 * 2**20


class MirrorDownloader(Downloader):
    """Finds the files of a model in a mirror's index."""

    name = "mirror"
    schemes = frozenset({"mirror"})

    def resolve(self, reference):
        folder, _, name = reference.rest.partition("#")
        parts = urllib.parse.urlsplit(folder)
        if parts.scheme not in ("http", "https") or not parts.hostname or not name:
            raise InvalidReference(f"{reference.text}: write mirror:https://host/folder#model")
        folder = folder.rstrip("/")
        index = self._index(f"{folder}/index.json")
        if name not in index:
            raise NotFound(f"{folder} has no model {name}; it has: {', '.join(sorted(index)) or 'none'}")
        try:
            files = tuple(
                RemoteFile(file["path"], f"{folder}/{name}/{file['path']}", file.get("size"), file.get("sha256"))
                for file in index[name]["files"]
            )
            about = index[name].get("revision", ""), index[name].get("licence", "")
        except (KeyError, TypeError, AttributeError):
            raise NetworkError(f"the index of {folder} doesn't say what {name} is; tell its owner") from None
        return Resolution(files, name, f"mirror:{folder}#{name}", *about)

    def _index(self, url):
        try:
            with urllib.request.urlopen(url, timeout=20) as answer:
                index = json.loads(answer.read(MAX_INDEX))
        except urllib.error.HTTPError as error:
            with error:
                kind = NotFound if error.code == 404 else NetworkError
                raise kind(f"{url}: the server answered with status {error.code}; check the address") from None
        except (OSError, ValueError) as error:
            raise NetworkError(f"{url} can't be read: {error}; check the address and your network") from None
        if not isinstance(index, dict):
            raise NetworkError(f"{url} is no index of a mirror; check the address")
        return index
