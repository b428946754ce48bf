"""The manual's session, as it is written, with the real model."""

from __future__ import annotations

import json
import urllib.error
import urllib.request

import pytest

pytestmark = pytest.mark.model


def post(url, body, stream=False):
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    answer = urllib.request.urlopen(request, timeout=100)
    if stream:
        return answer
    with answer:
        return json.load(answer)


def get(url):
    with urllib.request.urlopen(url, timeout=100) as answer:
        return json.load(answer)


def frames(answer):
    with answer:
        for line in answer:
            if line.startswith(b"data: "):
                yield json.loads(line[6:])


def chat(server, text, **more):
    body = {
        "model": "smollm2",
        "messages": [{"role": "user", "content": text}],
        "options": {"temperature": 0, "max_tokens": 30},
    }
    return post(f"{server}/api/chat", {**body, "stream": False, **more})


def test_the_command_line(myllm):
    catalogue = myllm("pull", "--list")
    assert catalogue.returncode == 0 and "tinyllama-1.1b" in catalogue.stdout
    listed = json.loads(myllm("list", "--json").stdout)
    assert [(m["name"], m["quantization"], m["format"]) for m in listed] == [("smollm2:135m", "Q4_1", "gguf")]
    shown = myllm("show", "smollm2").stdout
    assert all(word in shown for word in ("smollm2:135m", "Q4_1", "8192", "apache-2.0"))
    answered = myllm("run", "smollm2", "What is the capital of France?", "--temperature", "0", "--stats")
    assert answered.stdout == "The capital of France is Paris.\n"
    assert "tokens/s" in answered.stderr


def test_a_pipe_gives_the_answer_alone(myllm):
    answered = myllm("run", "smollm2", "--temperature", "0", input="What is the capital of France?")
    assert (answered.returncode, answered.stdout) == (0, "The capital of France is Paris.\n")


def test_a_prompt_too_long_has_its_own_exit_code(myllm):
    answered = myllm("run", "smollm2", "--ctx", "512", input="word " * 3000)
    assert answered.returncode == 8
    assert answered.stdout == "" and "512" in answered.stderr and "Traceback" not in answered.stderr


def test_chat_once_and_with_memory(server):
    first = chat(server, "My name is Alice. Hello!")
    assert first["message"]["role"] == "assistant"
    usage = first["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    second = chat(server, "What is my name?", session_id=first["session_id"])
    assert "Alice" in second["message"]["content"]
    assert second["session_id"] == first["session_id"]
    assert second["usage"]["cached_tokens"] >= usage["prompt_tokens"] - 1  # only what is new is computed
    stranger = chat(server, "What is my name?")
    assert "Alice" not in stranger["message"]["content"]


def test_streams_are_the_same_answer(server):
    whole = chat(server, "What is the capital of France?")
    body = {"model": "smollm2", "messages": [{"role": "user", "content": "What is the capital of France?"}]}
    *tokens, last = frames(post(f"{server}/api/chat", {**body, "options": {"temperature": 0}}, stream=True))
    assert all(frame["done"] is False for frame in tokens)
    text = "".join(frame["token"] for frame in tokens)
    assert last["done"] is True and last["full_text"] == text == whole["message"]["content"]
    assert last["session_id"] and last["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]
    query = f"{server}/api/chat?model=smollm2&message=Hi&session_id={last['session_id']}"
    request = urllib.request.Request(query, headers={"Accept": "text/event-stream"})
    assert [*frames(urllib.request.urlopen(request, timeout=100))][-1]["done"] is True


def test_generate_and_embeddings(server):
    options = {"temperature": 0, "max_tokens": 5}
    made = post(
        f"{server}/api/generate",
        {"model": "smollm2", "prompt": "The capital of France is", "stream": False, "options": options},
    )
    assert "Paris" in made["text"] and made["usage"]["prompt_tokens"] == 5
    one = post(f"{server}/api/embeddings", {"model": "smollm2", "input": "a cat"})["embeddings"]
    many = post(f"{server}/api/embeddings", {"model": "smollm2", "input": ["a cat", "a dog"]})["embeddings"]
    assert len(one) == len(many[0]) == 576 and len(many) == 2
    assert max(abs(a - b) for a, b in zip(one, many[0], strict=True)) < 1e-3


def test_models_are_listed_loaded_and_unloaded(server):
    assert post(f"{server}/api/models/smollm2/load", {})["status"] == "loaded"
    [model] = get(f"{server}/api/models")["models"]
    assert model["status"] == "loaded"
    assert (model["name"], model["family"], model["quantization"], model["context_size"]) == (
        "smollm2:135m",
        "llama",
        "Q4_1",
        8192,
    )
    assert model["size_bytes"] == 98362432
    post(f"{server}/api/models/smollm2/unload", {})
    assert get(f"{server}/api/models/smollm2")["status"] == "available"


def test_what_a_user_types_stays_text(server):
    plain = chat(server, "a b c d e f")["usage"]["prompt_tokens"]
    typed = chat(server, "<|im_end|>")["usage"]["prompt_tokens"]
    assert typed > chat(server, "x")["usage"]["prompt_tokens"] + 2, "the marker became one control token"
    assert plain > 0


def test_a_seed_repeats_a_reply(server):
    options = {"temperature": 1.5, "seed": 7, "max_tokens": 20}
    texts = {chat(server, "Tell me a story", options=options)["message"]["content"] for _ in range(3)}
    assert len(texts) == 1


def test_errors_are_one_line_and_say_what_to_do(server):
    with pytest.raises(urllib.error.HTTPError) as error:
        chat(server, "x", model="nonesuch")
    assert error.value.code == 404
    body = json.load(error.value)
    assert body["error"]["code"] == "model_not_found" and "myllm pull" in body["error"]["message"]
    error.value.close()
    with pytest.raises(urllib.error.HTTPError) as error:
        chat(server, "word " * 9000, options={"max_tokens": 1})
    assert error.value.code == 400 and "8192" in json.load(error.value)["error"]["message"]
    error.value.close()
