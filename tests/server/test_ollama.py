"""`/ollama` as Ollama's clients depend on it, line by line."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.events import script, told_server
from support.server import Answer, LiveServer, StartServer, eventually, install_echo, live_server, read_until
from support.site import Site

END = ("finish", "stop")
LONG = " ".join(f"w{i}" for i in range(400))  # 20 s with the model `slow`
COUNTS = {"prompt_eval_count": 3, "eval_count": 3}
TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z"


def user(content: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}]


def ask(live: LiveServer, content: str = "Why not now?", **fields: Any) -> Answer:
    return live.post("/ollama/api/chat", {"model": "echo", "messages": user(content), **fields})


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server with the model ``told``."""
    with told_server(tmp_path_factory.mktemp("told")) as server:
        yield server


def tell(told: LiveServer, *events: tuple[str, Any], **fields: Any) -> Answer:
    return ask(told, script(*events), **({"model": "told"} | fields))


def lines_of(answer: Answer) -> list[dict[str, Any]]:
    """The lines of a whole stream, after checking what is true of every one."""
    assert answer.status == 200, answer.body
    assert answer.headers["content-type"].startswith("application/x-ndjson")
    assert answer.body.endswith(b"\n") and b"\n\n" not in answer.body
    lines = [json.loads(line) for line in answer.body.splitlines()]
    assert [line["done"] for line in lines] == [False] * (len(lines) - 1) + [True]
    assert all(re.fullmatch(TIME, line["created_at"]) for line in lines)
    return lines


def check_ending(line: dict[str, Any], reason: str = "stop") -> None:
    assert line["done"] is True and line["done_reason"] == reason
    durations = ("total_duration", "load_duration", "prompt_eval_duration", "eval_duration")
    assert all(isinstance(line[name], int) and line[name] >= 0 for name in durations)
    assert line["total_duration"] > 0


def test_a_stream_unless_it_isnt_wanted(live: LiveServer) -> None:
    *lines, last = lines_of(ask(live, model="slow"))
    assert [line["message"] for line in lines] == [
        {"role": "assistant", "content": text} for text in ("Why", " not", " now?")
    ]
    assert all(line["model"] == "slow" for line in (*lines, last))
    assert last["message"] == {"role": "assistant", "content": ""} and last.items() >= COUNTS.items()
    check_ending(last)
    whole = ask(live, stream=False)
    assert whole.headers["content-type"] == "application/json" and whole.json.items() >= COUNTS.items()
    assert whole.json["message"] == {"role": "assistant", "content": "Why not now?"}
    check_ending(whole.json)


def test_generations(live: LiveServer, told: LiveServer) -> None:
    body = {"model": "echo", "prompt": "Why not now?"}
    lines = lines_of(live.post("/ollama/api/generate", body))
    assert "".join(line["response"] for line in lines) == "Why not now?"
    whole = live.post("/ollama/api/generate", {**body, "stream": False, "options": {"num_predict": 2}}).json
    assert whole["response"] == "Why not" and whole["done_reason"] == "length"
    asked = {"model": "told", "prompt": script(("request", ""), END), "stream": False}
    chat = told.post("/ollama/api/generate", {**asked, "system": "be kind"}).json["response"]
    assert "ChatRequest(messages=(Message(role='system', content='be kind'" in chat
    raw = told.post("/ollama/api/generate", {**asked, "raw": True}).json["response"]
    assert raw.startswith("CompletionRequest(")
    refused = told.post("/ollama/api/generate", {**asked, "raw": True, "system": "x"})
    assert refused.status == 400 and "raw prompt" in refused.json["error"]


def test_reasoning_and_calls(told: LiveServer) -> None:
    calls = [(0, "c1", "add", ""), (0, None, None, '{"a":'), (0, None, None, "1}"), (1, "c2", "stop", "{}")]
    said = [("reasoning", "h"), ("reasoning", "m"), ("text", "yes"), *(("call", call) for call in calls)]
    said.append(("finish", "tool_calls"))
    expected = [
        {"id": "c1", "function": {"index": 0, "name": "add", "arguments": {"a": 1}}},
        {"id": "c2", "function": {"index": 1, "name": "stop", "arguments": {}}},
    ]
    whole = tell(told, *said, stream=False).json
    assert whole["message"] == {"role": "assistant", "content": "yes", "thinking": "hm", "tool_calls": expected}
    assert whole["done_reason"] == "stop"
    messages = [line["message"] for line in lines_of(tell(told, *said))]
    assert "".join(message.get("thinking", "") for message in messages) == "hm"
    assert [call for message in messages for call in message.get("tool_calls", [])] == expected


def test_log_probabilities(told: LiveServer) -> None:
    said = [("logprob", "Hi"), ("logprob", "é"), END]
    whole = tell(told, *said, stream=False, logprobs=True, top_logprobs=2).json["logprobs"]
    hi = {"token": "Hi", "logprob": -0.25, "bytes": [72, 105]}
    assert whole[0] == hi | {"top_logprobs": [hi, {"token": "?", "logprob": -9999.0, "bytes": [63]}]}
    streamed = lines_of(tell(told, *said, logprobs=True, top_logprobs=2))
    assert [one for line in streamed for one in line.get("logprobs", [])] == whole


def test_what_reaches_the_engine(told: LiveServer) -> None:
    messages = [
        {"role": "system", "content": "be kind"},
        {"role": "assistant", "content": "", "thinking": "hm", "tool_calls": [
            {"function": {"name": "add", "arguments": {"a": 1}}},
            {"function": {"name": "stop", "arguments": {}}},
        ]},
        {"role": "tool", "content": "ok", "tool_name": "stop"},
        {"role": "tool", "content": "4"},
        *user(script(("request", ""), END)),
    ]  # fmt: skip
    options = {"num_predict": 9, "stop": ["\nEND"], "seed": 7}
    answer = ask(told, model="told", messages=messages, options=options, stream=False)
    request = answer.json["message"]["content"]
    assert "Message(role='system', content='be kind'" in request
    assert "reasoning='hm', tool_calls=(ToolCall(id='call_1_0', name='add', arguments='{\"a\": 1}')" in request
    assert "Message(role='tool', content='ok', reasoning='', tool_calls=(), tool_call_id='call_1_1'" in request
    assert "Message(role='tool', content='4', reasoning='', tool_calls=(), tool_call_id='call_1_0'" in request
    assert "max_tokens=9, stop=('\\nEND',)" in request and "seed=7" in request and "fit='error'" in request


@pytest.mark.parametrize(
    ("fields", "seen"),
    [
        ({"truncate": True}, "fit='drop'"),
        ({"options": {"num_predict": -1}}, "max_tokens=None"),
        ({"options": {"num_predict": -2}}, "max_tokens=None"),
        ({"options": {"max_tokens": 5}}, "max_tokens=5"),
        ({"options": {"num_keep": 4, "mirostat": 0, "typical_p": 1.0, "numa": False}}, "max_tokens=None"),
        ({"images": None, "suffix": "", "template": "", "context": []}, "max_tokens=None"),
        ({"format": ""}, "grammar=None"),
    ],
)
def test_what_means_something_or_nothing(told: LiveServer, fields: dict[str, Any], seen: str) -> None:
    answer = tell(told, ("request", ""), END, stream=False, **fields)
    assert answer.status == 200 and seen in answer.json["message"]["content"]
    assert "x-myllm-ignored" not in answer.headers


@pytest.mark.parametrize(
    ("fields", "about"),
    [
        ({"model": None}, "model:"),
        ({"messages": "x"}, "messages:"),
        ({"messages": [{"role": "robot"}]}, "messages.0.role:"),
        ({"messages": [{"role": "user", "content": "x", "images": ["aGk="]}]}, "images: this isn't a PNG"),
        (
            {"messages": [{"role": "user", "content": "x", "images": ["!"]}]},
            "messages.0.images.0: the data isn't base64",
        ),
        ({"messages": [{"role": "tool", "content": "4", "tool_name": "add"}]}, "messages.0: no tool call waits"),
        ({"template": "{{ x }}"}, "template: this server can't do that"),
        ({"shift": True}, "shift:"),
        ({"options": {"temperature": 3}}, "temperature:"),
        ({"options": {"temperature": "1"}}, "temperature:"),
        ({"options": {"mirostat": 2}}, "options.mirostat:"),
        ({"options": {"typical_p": 0.5}}, "options.typical_p:"),
        ({"options": {"use_mlock": True}}, "options.use_mlock:"),
        ({"options": {"num_ctx": 4096}}, "n_ctx"),
        ({"options": {"num_predict": 3, "max_tokens": 4}}, "options.num_predict:"),
        ({"format": "xml"}, "format:"),
        ({"format": {"type": "object"}, "options": {"json_schema": {}}}, "options.json_schema:"),
        ({"format": "json"}, "can't be held to a JSON schema"),
        ({"top_logprobs": 2}, "top_logprobs: it needs logprobs"),
        ({"think": True}, "no option reasoning_effort"),
        ({"think": "much"}, "think"),
        ({"keep_alive": "soon"}, "keep_alive:"),
        ({"keep_alive": True}, "keep_alive:"),
        ({"stream": "yes"}, "stream:"),
    ],
)
def test_what_cant_be_honoured_is_refused(live: LiveServer, fields: dict[str, Any], about: str) -> None:
    answer = ask(live, **fields)
    assert answer.status == 400 and answer.json.keys() == {"error"}, answer.body
    assert about in answer.json["error"]


def test_fields_of_others_are_ignored_and_named(live: LiveServer) -> None:
    answer = ask(live, wibble=1, options={"wobble": 2, "seed": 3}, shift=False)
    assert answer.headers["x-myllm-ignored"] == "options.wobble, wibble" and answer.status == 200


def test_errors(live: LiveServer, start: StartServer) -> None:
    missing = ask(live, model="nope")
    assert missing.status == 404 and missing.json["error"].startswith("model 'nope' not found")
    assert "myllm pull nope" in missing.json["error"]
    for answer, status in (
        (live.post("/ollama/api/create", {"model": "x"}), 404),
        (live.get("/ollama/api/chat"), 405),
        (live.post("/ollama/api/chat", raw=b"{"), 400),
        (live.post("/ollama/api/chat", raw=b"{}", headers={"content-type": "text/plain"}), 415),
        (live.post("/ollama/api/chat", {}, headers={"origin": "http://evil.example"}), 403),
        (live.post("/ollama/api/chat", {}, headers={"host": "evil.example"}), 403),
    ):
        assert answer.status == status and answer.json.keys() == {"error"}, answer.body
    with start(api_key="k3y") as server:
        assert ask(server).status == 401 and ask(server).json.keys() == {"error"}
        assert server.request("HEAD", "/ollama/").status == 401


def test_faults(told: LiveServer) -> None:
    for stream in (True, False):
        answer = tell(told, ("raise", "the wires melted"), stream=stream)
        assert (answer.status, answer.json) == (500, {"error": "the wires melted"})
    for fault in (("raise", "the wires melted"), ("finish", "cancelled"), ("call", (0, "c", "add", "[1"))):
        answer = tell(told, ("text", "well"), fault, ("finish", "tool_calls"))
        first, *_, last = [json.loads(line) for line in answer.body.splitlines()]
        assert answer.status == 200 and first["message"]["content"] == "well"
        assert last.keys() == {"error"}
        assert tell(told, ("text", "well"), fault, ("finish", "tool_calls"), stream=False).status == 500


def test_loading_and_unloading(start: StartServer) -> None:
    with start() as server:
        for path, empty in (("chat", {"messages": []}), ("chat", {}), ("generate", {"prompt": ""}), ("generate", {})):
            (line,) = lines_of(server.post(f"/ollama/api/{path}", {"model": "echo", **empty, "keep_alive": "1h30m"}))
            assert line["done_reason"] == "load"
            assert line["message"]["content"] == "" if path == "chat" else line["response"] == ""
            assert 5300 < server.get("/api/ps").json["models"][0]["expires_in"] <= 5400
            gone = server.post(f"/ollama/api/{path}", {"model": "echo", **empty, "keep_alive": 0, "stream": False})
            assert gone.json["done_reason"] == "unload" and server.get("/api/ps").json["models"] == []
        assert ask(server, keep_alive=-1).status == 200
        assert server.get("/api/ps").json["models"][0]["expires_in"] is None
        assert ask(server, keep_alive="0s").status == 200
        eventually(lambda: server.get("/api/ps").json["models"] == [])
        assert server.post("/ollama/api/chat", {"model": "nope"}).status == 404


def test_vectors(live: LiveServer) -> None:
    one = live.post("/ollama/api/embed", {"model": "echo", "input": "abc"}).json
    assert one["embeddings"] == [[3.0, 1.0]] and one["prompt_eval_count"] == 1 and one["total_duration"] > 0
    many = live.post("/ollama/api/embed", {"model": "echo", "input": ["abc", "d"], "truncate": True, "dimensions": 2})
    assert many.json["embeddings"] == [[3.0, 1.0], [1.0, 1.0]]
    loading = {"model": "echo", "input": "", "options": {"num_ctx": 128}}
    for path, text in (("embed", "input"), ("embeddings", "prompt")):
        refused = live.post(f"/ollama/api/{path}", loading | {text: ""})
        assert refused.status == 400 and "_ctx" in refused.json["error"]
    for nothing in ("", []):
        assert live.post("/ollama/api/embed", {"model": "echo", "input": nothing}).json["embeddings"] == []
    other = live.post("/ollama/api/embed", {"model": "echo", "input": "abc", "dimensions": 3})
    assert other.status == 400 and "have 2" in other.json["error"]
    older = live.post("/ollama/api/embeddings", {"model": "echo", "prompt": "abc"})
    assert older.json == {"embedding": [3.0, 1.0]}
    assert live.post("/ollama/api/embeddings", {"model": "echo"}).json == {"embedding": []}


def test_a_silent_stream_has_lines_without_text(tmp_path: Path) -> None:
    install_echo(tmp_path / "models", load_options={"delay_ms": 700})
    with live_server(tmp_path, ping_interval=0.2) as server:
        lines = lines_of(ask(server, "a b"))
    empty = [line for line in lines[:-1] if line["message"]["content"] == ""]
    assert len(empty) >= 2 and "".join(line["message"]["content"] for line in lines) == "a b"


def test_going_away_ends_the_generation(live: LiveServer) -> None:
    for stream in (True, False):
        content = json.dumps({"model": "slow", "messages": user(LONG), "stream": stream}).encode()
        with live.connect() as connection:
            head = b"POST /ollama/api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            connection.sendall(head + b"Content-Length: %d\r\n\r\n%s" % (len(content), content))
            eventually(lambda: live.running() == 1)
        eventually(lambda: live.running() == 0, 3)


def test_the_root_and_the_version(live: LiveServer) -> None:
    for path in ("/ollama", "/ollama/"):
        answer = live.get(path)
        assert (answer.status, answer.body) == (200, b"Ollama is running")
        assert (live.request("HEAD", path).status, live.request("HEAD", path).body) == (200, b"")
    assert re.fullmatch(r"\d+\.\d+\.\d+", live.get("/ollama/api/version").json["version"])


def test_models(start: StartServer, tmp_path: Path) -> None:
    about = {"options": {"temperature": 0.2, "max_tokens": 9, "stop": ["a", "b"]}, "system": 'Say "hi".'}
    more = {"pulled_at": "2026-01-02T03:04:05+01:00", "parameters": 134515008, "quantization": "Q4_1"}
    install_echo(tmp_path / "models", "a:1", **about, **more)
    with start(models_dir=tmp_path / "models") as server:
        (listed,) = server.get("/ollama/api/tags").json["models"]
        details = {
            "parent_model": "",
            "format": "echo",
            "family": "echo",
            "families": ["echo"],
            "parameter_size": "134.5M",
            "quantization_level": "Q4_1",
        }
        assert re.fullmatch(r"[0-9a-f]{64}", listed.pop("digest"))
        modified = "2026-01-02T02:04:05Z"
        assert listed == {"name": "a:1", "model": "a:1", "modified_at": modified, "size": 5, "details": details}
        for name in ({"model": "a:1"}, {"name": "a"}):
            shown = server.post("/ollama/api/show", name).json
        assert shown["parameters"].splitlines() == ["temperature 0.2", "num_predict 9", 'stop "a"', 'stop "b"']
        assert shown["model_info"]["general.architecture"] == "echo" and shown["capabilities"] == ["completion"]
        assert 'SYSTEM "Say \\"hi\\"."' in shown["modelfile"] and shown["details"] == details
        assert server.post("/ollama/api/show", {"model": "a", "verbose": True}).status == 400
        assert server.get("/ollama/api/ps").json == {"models": []}
        ask(server, model="a")
        (loaded,) = server.get("/ollama/api/ps").json["models"]
        assert loaded["name"] == "a:1" and loaded["context_length"] == 4096 and loaded["expires_at"].endswith("Z")


def test_copying_and_deleting(start: StartServer, tmp_path: Path) -> None:
    models = tmp_path / "models"
    install_echo(models)
    with start(models_dir=models) as server:
        copied = server.post("/ollama/api/copy", {"source": "echo", "destination": "mine/x"})
        assert copied.status == 400 and copied.json.keys() == {"error"}
        assert server.post("/ollama/api/copy", {"source": "nope", "destination": "mine"}).status == 404
        assert server.post("/ollama/api/copy", {"source": "echo", "destination": "mine"}).status == 200
        again = server.post("/ollama/api/copy", {"source": "echo", "destination": "mine"})
        assert again.status == 400 and "already" in again.json["error"]
        assert ask(server, model="mine", stream=False).json["message"]["content"] == "Why not now?"
        gone = server.request("DELETE", "/ollama/api/delete", {"model": "echo"})
        assert (gone.status, gone.body) == (200, b"")
        assert [model["name"] for model in server.get("/ollama/api/tags").json["models"]] == ["mine:latest"]
        assert ask(server, model="mine").status == 200, "its files are still there"
        assert server.request("DELETE", "/ollama/api/delete", {"name": "echo"}).status == 404
        assert server.request("DELETE", "/ollama/api/delete", {"model": "mine"}).status == 200
    assert not (models / "mine@latest").exists()


def test_pulling(start: StartServer, tmp_path: Path) -> None:
    with start(models_dir=tmp_path / "models") as server:
        answer = server.post("/ollama/api/pull", {"model": "echo"})
        lines = [json.loads(line) for line in answer.body.splitlines()]
        assert answer.headers["content-type"].startswith("application/x-ndjson")
        assert lines[0] == {"status": "pulling manifest"} and lines[-1] == {"status": "success"}
        file = [line for line in lines if "digest" in line][-1]
        assert file == {"status": "pulling echo.txt", "digest": "file:echo.txt", "total": 5, "completed": 5}
        assert ask(server, stream=False).json["message"]["content"] == "Why not now?"
        assert server.post("/ollama/api/pull", {"model": "echo", "stream": False}).json == {"status": "success"}
        for name, status in (("nope", 404), ("/etc/passwd", 400), ("./x.gguf", 400), ("file:/etc/passwd", 400),
                             ("http://127.0.0.1:1/x.gguf", 400), ("https://127.0.0.1:1/x.gguf", 400),
                             ("../x", 400), ("a b", 400)):  # fmt: skip
            refused = server.post("/ollama/api/pull", {"model": name})
            assert (refused.status, refused.json.keys()) == (status, {"error"}), name
        assert server.post("/ollama/api/pull", {"model": "echo", "insecure": True}).status == 400


def test_a_pull_that_fails_says_so_in_its_last_line(start: StartServer, tmp_path: Path) -> None:
    (tmp_path / "models").write_text("no folder")
    with start(models_dir=tmp_path / "models") as server:
        answer = server.post("/ollama/api/pull", {"model": "echo"})
        assert json.loads(answer.body.splitlines()[-1]).keys() == {"error"}
        assert server.post("/ollama/api/pull", {"model": "echo", "stream": False}).status == 507


def test_management_needs_a_key_that_manages(start: StartServer, tmp_path: Path) -> None:
    from myllm_core.keys import KeyFile

    secret = KeyFile(tmp_path / "data").create("reader", scopes=("chat",))
    with start() as server:
        key = {"authorization": f"Bearer {secret}"}
        for method, path, body in (
            ("POST", "pull", {"model": "echo"}),
            ("POST", "copy", {"source": "echo", "destination": "two"}),
            ("DELETE", "delete", {"model": "echo"}),
        ):
            refused = server.request(method, f"/ollama/api/{path}", body, headers=key)
            assert refused.status == 403 and refused.json.keys() == {"error"}
        asked = {"model": "echo", "messages": user("hi"), "stream": False}
        for more in ({"options": {"num_ctx": 512}}, {"keep_alive": "1h"}):
            assert server.post("/ollama/api/chat", asked | more, headers=key).status == 403
        assert server.post("/ollama/api/chat", asked, headers=key).status == 200


DRIP = """
    import time
    from myllm_core import Downloader, RemoteFile, Resolution, hookimpl

    class Drip(Downloader):
        name = "NAME"
        schemes = frozenset({"drip"})

        def resolve(self, reference):
            return Resolution((RemoteFile("w.txt"),), f"drip:{reference.rest}", reference.text, "1", "", "echo")

        def fetch(self, file, sink):
            sink.expect(600)
            for _ in range(600):
                sink.write(b"x")
                time.sleep(0.05)

    @hookimpl
    def myllm_downloaders():
        return [Drip]
"""


def test_a_client_that_goes_away_stops_its_pull(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "site").mkdir()
    monkeypatch.syspath_prepend(tmp_path / "site")
    Site(tmp_path / "site").install("drip", DRIP)
    content = json.dumps({"model": "drip:x"}).encode()
    with live_server(tmp_path) as server:
        with server.connect() as connection:
            head = b"POST /ollama/api/pull HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            connection.sendall(head + b"Content-Length: %d\r\n\r\n%s" % (len(content), content))
            read_until(connection, b'"completed":[1-9]')
            assert pulling()
        eventually(lambda: not pulling(), 10)
        assert server.get("/ollama/api/tags").json == {"models": []}


def pulling() -> bool:
    return any(thread.name.startswith("pull ") for thread in threading.enumerate())
