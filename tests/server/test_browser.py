"""In Chromium: what pages of other origins can do to a server (nothing), and what those that are allowed can."""

from __future__ import annotations

import base64
import http.server
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from myllm_core.testing.pictures import png
from support.server import LiveServer, StartServer, eventually

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.timeout(300),
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium; Debian: apt-get install chromium"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A Chromium that takes evil.example for this machine, as a name that was rebound."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        options = ["--no-sandbox", "--host-resolver-rules=MAP evil.example 127.0.0.1"]
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=options, timeout=120_000)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def stranger() -> Iterator[int]:
    """The port of a server with an empty page, for scripts that run in another origin."""

    class Empty(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-type", "text/html")
            self.end_headers()
            self.wfile.write(b"<!doctype html><title>stranger</title><body></body>")

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Empty) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join(10)


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    context = browser.new_context()
    opened = context.new_page()
    opened.set_default_timeout(60_000)
    yield opened
    context.close()


ATTACK = """
async (target) => {
  const chat = JSON.stringify({model: "echo", messages: [{role: "user", content: "hi"}], session_id: "stolen"});
  const generate = JSON.stringify({model: "echo", prompt: "hi"});
  const seen = [];
  const note = (what, text) => seen.push(what + ": " + text);
  const tries = [];
  const send = (what, path, options) => tries.push(fetch(target + path, options).then(
    async (answer) => note(what + " " + path, answer.type + " " + answer.status + " " + (await answer.text())),
    (error) => note(what + " " + path, "refused")));
  for (const path of ["/api/models", "/api/ps", "/api/sessions", "/v1/models", "/metrics", "/health", "/openapi.json",
      "/", "/ollama/api/tags", "/api/chat?model=echo&message=hi&session_id=stolen"]) {
    send("read", path, {});
    send("read with credentials", path, {credentials: "include"});
    send("read blindly", path, {mode: "no-cors"});
    send("read with a header", path, {headers: {accept: "text/event-stream", "x-api-key": "k"}});
  }
  for (const [path, body] of [["/api/chat", chat], ["/v1/chat/completions", chat], ["/api/generate", generate],
      ["/ollama/api/generate", generate], ["/v1/messages", chat], ["/api/models/echo/load", ""],
      ["/api/models/echo/load", "{}"], ["/api/models/echo/unload", ""], ["/ollama/api/pull", '{"model": "x"}']]) {
    for (const type of ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
      send("simple " + type, path, {method: "POST", mode: "no-cors", headers: {"content-type": type}, body});
    send("json", path, {method: "POST", headers: {"content-type": "application/json"}, body});
    navigator.sendBeacon(target + path, body);
  }
  send("delete", "/api/sessions/kept", {method: "DELETE"});
  send("put", "/api/sessions/kept", {method: "PUT", body: "{}"});
  const loads = (tag, set) => tries.push(new Promise((done) => {
    const element = document.createElement(tag);
    element.onload = () => { note(tag, "loaded"); done(); };
    element.onerror = () => { note(tag, "refused"); done(); };
    set(element);
    document.body.append(element);
    setTimeout(done, 3000);
  }));
  const get = target + "/api/chat?model=echo&message=hi&session_id=stolen";
  for (const address of [get, target + "/api/models", target + "/static-offline-docs/favicon.png"]) {
    loads("img", (element) => { element.src = address; });
    loads("script", (element) => { element.src = address; });
    loads("video", (element) => { element.src = address; });
    loads("link", (element) => { element.rel = "stylesheet"; element.href = address; });
    loads("object", (element) => { element.data = address; });
  }
  for (const address of [get, target + "/", target + "/docs", target + "/api/sessions/kept"]) {
    const frame = document.createElement("iframe");
    frame.src = address;
    document.body.append(frame);
    tries.push(new Promise((done) => setTimeout(() => {
      try { note("iframe", frame.contentDocument ? frame.contentDocument.body.innerHTML || "empty" : "closed"); }
      catch { note("iframe", "closed"); }
      done();
    }, 2000)));
  }
  for (const enctype of ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"]) {
    const [frame, form, field] = ["iframe", "form", "input"].map((tag) => document.createElement(tag));
    frame.name = "into" + enctype;
    Object.assign(form, {action: target + "/api/chat", method: "POST", enctype, target: frame.name});
    Object.assign(field, {name: chat.slice(0, -1) + ', "x": "', value: '"}'});
    form.append(field);
    document.body.append(frame, form);
    form.submit();
  }
  tries.push(new Promise((done) => {
    const source = new EventSource(get);
    source.onmessage = (event) => note("eventsource", "read " + event.data);
    source.onerror = () => { note("eventsource", "refused"); source.close(); done(); };
  }));
  tries.push(new Promise((done) => {
    const socket = new WebSocket(target.replace("http", "ws") + "/api/chat");
    socket.onopen = () => { note("websocket", "open"); done(); };
    socket.onerror = () => { note("websocket", "refused"); done(); };
  }));
  await Promise.all(tries);
  return seen;
}
"""


def counts(live: LiveServer) -> dict[tuple[str, str], float]:
    """How many requests have ended, by method and status."""
    found: dict[tuple[str, str], float] = {}
    lines = re.findall(r"^myllm_http_requests_total\{(.*)\} (\S+)$", live.get("/metrics").body.decode(), re.MULTILINE)
    for labels, value in lines:
        key = (re.search(r'method="(\w+)"', labels)[1], re.search(r'status="(\d+)"', labels)[1])  # type: ignore[index]
        found[key] = found.get(key, 0) + float(value)
    return found


@pytest.mark.parametrize(
    ("origin", "target"),
    [
        ("127.0.0.1", "127.0.0.1"),  # another port: the same site, for a browser
        ("localhost", "127.0.0.1"),
        ("evil.example", "localhost"),
        ("evil.example", "evil.example"),
    ],
)
def test_a_page_of_another_origin_neither_reads_nor_causes_anything(
    page: Any, stranger: int, start: StartServer, origin: str, target: str
) -> None:
    with start() as live:
        live.chat("keep this heron", session_id="kept")
        sessions, before = live.get("/api/sessions").body, counts(live)
        page.goto(f"http://{origin}:{stranger}/")
        seen = page.evaluate(ATTACK, f"http://{target}:{live.port}")
        assert len(seen) > 60
        for result in seen:
            assert re.search(r": (refused|closed|empty|opaque 0 )$", result), result
        after = counts(live)
        new = {key: after[key] - before.get(key, 0) for key in after if after[key] != before.get(key, 0)}
        ours = {("GET", "200"): 1.0}  # the first look at the counts
        assert {key: n for key, n in new.items() if key[1] not in ("403", "499")} == ours, new
        assert sum(new.values()) > 40
        assert live.get("/api/sessions").body == sessions


def test_a_rebound_name_opens_nothing(browser: Any, start: StartServer) -> None:
    with start() as live, browser.new_context(bypass_csp=True) as context:
        page = context.new_page()
        answer = page.goto(f"http://evil.example:{live.port}/")
        assert answer.status == 403
        for method in ("GET", "POST", "DELETE"):
            read = f"async () => (await fetch('/api/sessions', {{method: '{method}'}})).status"
            assert page.evaluate(read) == 403, "of the same origin, for the browser"


LISTEN = """
(address) => new Promise((done) => {
  const frames = [], source = new EventSource(address);
  source.onmessage = (event) => frames.push(JSON.parse(event.data));
  source.onerror = () => { if (source.readyState === 2) done(frames); };
})
"""


def test_an_event_source_of_an_allowed_origin_reads_a_reply_once(page: Any, stranger: int, start: StartServer) -> None:
    origin = f"http://localhost:{stranger}"
    with start(cors_origins=[origin]) as live:
        page.goto(origin)
        frames = page.evaluate(LISTEN, f"http://127.0.0.1:{live.port}/api/chat?model=echo&message=one+two&session_id=s")
        assert "".join(frame.get("token", "") for frame in frames) == "one two"
        assert frames[-1]["done"] is True and frames[-1]["full_text"] == "one two"
        assert sum(frame["done"] for frame in frames) == 1
        assert len(live.get("/api/sessions/s").json["messages"]) == 2, "it connected again, and wasn't answered twice"
        send = """async (address) => (await (await fetch(address, {method: 'POST', body:
            '{"model": "echo", "messages": [{"role": "user", "content": "hi"}], "stream": false}',
            headers: {'content-type': 'application/json', 'x-stainless-os': 'x'}})).json()).message.content"""
        assert page.evaluate(send, f"http://127.0.0.1:{live.port}/api/chat") == "hi"


class Console(list[str]):
    """What a page has said to the console, errors too."""

    def __init__(self, page: Any) -> None:
        super().__init__()
        page.on("console", lambda message: self.append(message.text))
        page.on("pageerror", lambda error: self.append(str(error)))


def test_the_chat_page(page: Any, start: StartServer) -> None:
    said = Console(page)
    nasty = "<b>bold</b> <img src=x onerror=\"document.title='broken'\">\n```html\n<script>1</script>\n```\nend"
    with start() as live:
        page.goto(f"http://localhost:{live.port}/")
        page.wait_for_selector("#models option[value='echo:latest']", state="attached")
        page.select_option("#models", "echo:latest")
        page.fill("#text", nasty)
        page.press("#text", "Enter")
        page.wait_for_selector(".turn.assistant .note:has-text('tokens')")
        reply = page.locator(".turn.assistant .text")
        assert reply.locator("b, img, script").count() == 0 and page.title() == "myllm"
        assert "<b>bold</b> <img" in reply.inner_text() and reply.locator("pre").inner_text() == "<script>1</script>\n"
        page.wait_for_selector("#sessions li.open")
        page.click("#new")
        page.select_option("#models", "slow:latest")
        page.fill("#text", " ".join(f"w{number}" for number in range(300)))
        page.click("#send")
        page.wait_for_selector(".turn.assistant .text:has-text('w3')")
        page.click("#stop")
        page.wait_for_selector(".turn.assistant .note:has-text('Stopped.')")
        eventually(lambda: live.running() == 0, 60)
        page.wait_for_selector("#sessions li:nth-child(2)")
        page.click("#sessions li:nth-child(2) .title")
        page.wait_for_selector(".turn.assistant pre")
        page.fill("#text", "and more")
        page.press("#text", "Enter")
        page.wait_for_selector(".turn.assistant .text:has-text('and more')")
        page.once("dialog", lambda dialog: dialog.accept())
        page.hover("#sessions li:nth-child(1)")
        page.click("#sessions li:nth-child(1) .drop")
        page.wait_for_selector("#sessions li:nth-child(2)", state="detached")
        assert [one["model"] for one in live.get("/api/sessions").json["sessions"]] == ["slow:latest"]
        assert said == []


_PASTE = """
async (base64) => {
  const bytes = Uint8Array.from(atob(base64), (one) => one.charCodeAt(0));
  const clipboardData = new DataTransfer();
  clipboardData.items.add(new File([bytes], "pasted.png", {type: "image/png"}));
  document.getElementById("text").dispatchEvent(new ClipboardEvent("paste", {clipboardData, cancelable: true}));
}
"""


def test_the_chat_page_sends_images_and_shows_them(page: Any, start: StartServer) -> None:
    said = Console(page)
    red, blue = png(48, 32, (200, 30, 60)), png(20, 30, (0, 0, 255))
    with start() as live:
        page.goto(f"http://localhost:{live.port}/")
        page.set_input_files("#files", [{"name": "red.png", "mimeType": "image/png", "buffer": red}] * 2)
        page.evaluate(_PASTE, base64.b64encode(blue).decode())
        page.wait_for_selector("#waiting button:nth-child(3) img")
        page.click("#waiting button:first-child")
        page.fill("#text", "what are these?")
        page.press("#text", "Enter")
        page.get_by_text("[48x32 #c81e3c][20x30 #0000ff]what are these?").wait_for()
        shown = "[...document.querySelectorAll('#log img')].map((image) => image.complete && image.naturalWidth)"
        eventually(lambda: page.evaluate(shown) == [48, 20], 60)
        assert page.locator("#waiting img").count() == 0
        page.locator("#sessions .title").wait_for()
        page.click("#new")
        assert page.locator("#log img").count() == 0
        page.click("#sessions .title")
        eventually(lambda: page.evaluate(shown) == [48, 20], 60)
        assert said == []


def test_the_chat_page_asks_for_the_key_and_lets_no_other_script_run(page: Any, start: StartServer) -> None:
    with start(api_key="0pen") as live:
        assert page.goto(f"http://localhost:{live.port}/").status == 401
        page.wait_for_selector("#door[open]")
        page.fill("#secret", "wrong")
        page.press("#secret", "Enter")
        page.wait_for_selector('#refused:has-text("doesn\'t take")')
        page.fill("#secret", "0pen")
        page.press("#secret", "Enter")
        page.wait_for_selector("#models option", state="attached")
        page.fill("#text", "hello")
        page.click("#send")
        page.wait_for_selector(".turn.assistant .text:has-text('hello')")
        assert page.evaluate("sessionStorage['myllm.key']") == "0pen" and page.evaluate("localStorage.length") == 0
        assert "0pen" not in page.url
        said = Console(page)
        page.evaluate("document.body.append(Object.assign(document.createElement('style'), {textContent: '* {}'}))")
        with pytest.raises(Exception, match="TrustedScript"):
            page.evaluate(
                "document.body.append(Object.assign(document.createElement('script'), {text: 'window.x = 1'}))"
            )
        assert page.evaluate("window.x") is None
        eventually(lambda: any("Content Security Policy" in line for line in said), 60)


def test_the_docs_page_works_under_its_policy(page: Any, live: LiveServer) -> None:
    said = Console(page)
    page.goto(f"http://localhost:{live.port}/docs")
    page.click('[data-path="/api/ps"]')
    page.click(".opblock.is-open .execute")
    page.wait_for_selector(".opblock.is-open .live-responses-table :text('200')")
    assert said == []


def test_the_docs_page_asks_for_the_key_and_sends_it(page: Any, start: StartServer) -> None:
    with start(api_key="0pen") as live:
        assert page.goto(f"http://localhost:{live.port}/docs").status == 401
        page.wait_for_selector("#door")
        assert page.inner_text("#refused") == ""
        page.fill("#secret", "wrong")
        page.press("#secret", "Enter")
        page.wait_for_selector('#refused:has-text("opens nothing")')
        page.fill("#secret", "0pen")
        page.press("#secret", "Enter")
        page.click('[data-path="/api/ps"]')
        page.click(".opblock.is-open .execute")
        page.wait_for_selector(".opblock.is-open .live-responses-table :text('200')")
        assert "0pen" not in page.url
        said = Console(page)
        page.goto(f"http://localhost:{live.port}/")  # the tab has the key
        page.wait_for_selector("#models option", state="attached")
        assert not page.is_visible("#door") and all("401" in line for line in said)


def test_the_page_stands_on_its_own() -> None:
    html = (Path(__file__).parents[2] / "myllm_server/pages/chat.html").read_text(encoding="utf-8")
    assert not re.search(r"(src|href)=\"(?!data:,)|innerHTML|\beval\b|\sstyle=|\son\w+=\"|https?://", html)
