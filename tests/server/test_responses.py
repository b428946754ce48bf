"""`/v1/responses` with OpenAI's own client: documents, streams, chains, tools, and what is kept."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import OpenAI

from support.events import install_told, script
from support.server import LiveServer, StartServer, eventually, live_server
from support.site import Site

TOOL: Any = {"type": "function", "name": "add", "parameters": {"type": "object", "properties": {}}, "strict": False}
GONE = "resp_" + "0" * 48


@pytest.fixture
def client(live: LiveServer) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"http://127.0.0.1:{live.port}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


def stream(client: OpenAI, text: str, **more: Any) -> list[Any]:
    events = list(client.responses.create(model="echo", input=text, stream=True, **more))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    return events


def test_a_response_is_kept_and_can_be_read_again(client: OpenAI) -> None:
    made = client.responses.create(model="echo", input="hello you", instructions="Be kind", metadata={"a": "b"})
    assert made.output_text == "hello you" and made.status == "completed" and made.model == "echo"
    assert made.usage is not None and (made.usage.input_tokens, made.usage.output_tokens) == (2, 2)
    assert made.instructions == "Be kind" and made.metadata == {"a": "b"} and made.error is None
    again = client.responses.retrieve(made.id)
    assert again.model_dump(exclude={"created_at"}) == made.model_dump(exclude={"created_at"})


def test_a_response_goes_on_from_another_and_both_can_be_gone_on_from(live: LiveServer, client: OpenAI) -> None:
    first = client.responses.create(model="echo", input="one")
    second = client.responses.create(model="echo", input="two", previous_response_id=first.id)
    other = client.responses.create(model="echo", input="three", previous_response_id=first.id, store=False)
    branch = client.responses.create(model="echo", input="four", previous_response_id=first.id)
    assert second.previous_response_id == first.id and other.output_text == "three" and branch.output_text == "four"
    session = f"resp-{first.id[5:37]}"
    assert session == f"resp-{second.id[5:37]}" == f"resp-{branch.id[5:37]}"
    told = [message["content"] for message in live.get(f"/api/sessions/{session}").json["messages"]]
    assert told == ["one", "one", "four", "four"]
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(other.id)


def test_deleting(live: LiveServer, client: OpenAI) -> None:
    first = client.responses.create(model="echo", input="one")
    second = client.responses.create(model="echo", input="two", previous_response_id=first.id)
    with pytest.raises(openai.ConflictError, match="go on from this one"):
        client.responses.delete(first.id)
    client.responses.delete(second.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(second.id)
    assert client.responses.retrieve(first.id).output_text == "one"
    third = client.responses.create(model="echo", input="three", previous_response_id=first.id)
    assert client.responses.retrieve(third.id).output_text == "three"
    client.responses.delete(third.id)
    client.responses.delete(first.id)
    assert live.get(f"/api/sessions/resp-{first.id[5:37]}").status == 404
    with pytest.raises(openai.NotFoundError):
        client.responses.create(model="echo", input="x", previous_response_id=first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.delete(GONE)


def test_a_stream_has_openais_events_in_their_order(client: OpenAI) -> None:
    events = stream(client, "one two")
    assert [event.type for event in events] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert events[0].response.status == "in_progress" and events[0].response.output == []
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == "one two"
    last = events[-1].response
    assert last.id == events[0].response.id and last.output_text == "one two" and last.usage.output_tokens == 2
    assert client.responses.retrieve(last.id).output == last.output


def test_the_clients_own_accumulation(client: OpenAI) -> None:
    with client.responses.stream(model="echo", input="one two", tools=[TOOL]) as events:
        for _ in events:
            pass
        assert events.get_final_response().output_text == "one two"


def test_what_the_limit_cuts_is_incomplete(client: OpenAI) -> None:
    made = client.responses.create(model="echo", input="one two three", max_output_tokens=2)
    assert (made.status, made.output_text) == ("incomplete", "one two")
    assert made.incomplete_details is not None and made.incomplete_details.reason == "max_output_tokens"
    assert client.responses.retrieve(made.id).status == "incomplete"
    assert stream(client, "one two three", max_output_tokens=2)[-1].type == "response.incomplete"


def test_a_round_of_tools(client: OpenAI) -> None:
    ask = 'call add {"a": 12345}'
    made = client.responses.create(model="echo", input=ask, tools=[TOOL], tool_choice="required")
    (call,) = made.output
    assert call.type == "function_call" and (call.name, call.arguments) == ("add", '{"a": 12345}')
    result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "12345"}
    done = client.responses.create(model="echo", input=[result], previous_response_id=made.id, tools=[TOOL])
    assert done.output_text == "12345"
    inputs: Any = [{"role": "user", "content": ask}, call.model_dump(exclude_none=True), result]
    assert client.responses.create(model="echo", input=inputs, store=False).output_text == "12345"
    with pytest.raises(openai.BadRequestError, match="has no result"):
        client.responses.create(model="echo", input="and?", previous_response_id=made.id)
    events = stream(client, ask + "\ncall add {}", tools=[TOOL])
    kinds = [event.type for event in events if "delta" not in event.type]
    item = ["response.output_item.added", "response.function_call_arguments.done", "response.output_item.done"]
    assert kinds == ["response.created", "response.in_progress", *item, *item, "response.completed"]
    assert [item.arguments for item in events[-1].response.output] == ['{"a": 12345}', "{}"]
    named: Any = {"type": "function", "name": "add"}
    assert client.responses.create(model="echo", input=ask, tools=[TOOL], tool_choice=named).tool_choice.name == "add"


def test_items_of_kept_responses_may_be_referred_to(live: LiveServer, client: OpenAI) -> None:
    (call,) = client.responses.create(model="echo", input='call add {"a": 1}', tools=[TOOL]).output
    assert call.type == "function_call"
    refs: list[Any] = [{"type": "item_reference", "id": call.id}]
    result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "12345"}
    asked: list[Any] = [{"role": "user", "content": "please"}]
    done = client.responses.create(model="echo", input=[*asked, *refs, result], tools=[TOOL])
    assert done.output_text == "12345"
    client.responses.create(model="echo", input=[*asked, *refs, *refs, result], store=False)  # each counts once
    again: list[Any] = [*asked, {"type": "item_reference", "id": done.output[0].id}, *asked]
    last = client.responses.create(model="echo", input=again)
    told = live.get(f"/api/sessions/resp-{last.id[5:37]}").json["messages"]
    assert [message["content"] for message in told] == ["please", "12345", "please", "please"]


def test_an_item_that_is_not_kept_cannot_be_referred_to(client: OpenAI) -> None:
    loose = client.responses.create(model="echo", input="one", store=False).output[0].id
    kept = client.responses.create(model="echo", input="one").output[0].id
    for gone in ("x", loose, kept.replace("msg_", "fc_"), f"rs_{kept[4:52]}", f"{kept}x"):
        with pytest.raises(openai.NotFoundError, match="there is no"):
            client.responses.create(model="echo", input=[{"type": "item_reference", "id": gone}])


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"background": True}, "background"),
        ({"conversation": "c"}, "conversation"),
        ({"include": ["reasoning.encrypted_content"]}, "include"),
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
        ({"reasoning": {"summary": "detailed"}}, "reasoning.summary"),
        ({"reasoning": {"mode": "pro"}}, "reasoning.mode"),
        ({"stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"),
        ({"input": [{"type": "reasoning", "encrypted_content": "x"}]}, "input[0].encrypted_content"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
        ({"input": []}, "input"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input[0].content"),
        ({"input": [{"type": "function_call_output", "output": "x"}]}, "input[0].call_id"),
        ({"input": [{"type": "item_reference"}]}, "input[0].id"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"temperature": 3}, "temperature"),
    ],
)
def test_what_cannot_be_is_refused_by_name(live: LiveServer, fields: dict[str, Any], param: str) -> None:
    answer = live.post("/v1/responses", {"model": "echo", "input": "x"} | fields)
    assert (answer.status, answer.json["error"]["param"]) == (400, param), answer.body


def test_what_openai_has_not_is_named(live: LiveServer) -> None:
    answer = live.post("/v1/responses", {"model": "echo", "input": "x", "foo": 1, "service_tier": "auto"})
    assert answer.status == 200 and answer.headers["x-myllm-ignored"] == "foo"


def test_leaving_ends_a_stream_and_keeps_what_was_said(live: LiveServer, client: OpenAI) -> None:
    events = client.responses.create(model="slow", input=" ".join(f"w{i}" for i in range(400)), stream=True)
    response_id = next(iter(events)).response.id
    for event in events:
        if event.type == "response.output_text.delta" and "w3" in event.delta:
            break
    events.close()
    eventually(lambda: live.running() == 0, 10)
    eventually(lambda: live.get(f"/v1/responses/{response_id}").status == 200, 10)
    kept = client.responses.retrieve(response_id)
    assert kept.status == "cancelled" and kept.output_text.startswith("w0 w1")


def test_reasoning_faults_and_instructions(tmp_path: Any) -> None:
    (tmp_path / "site").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(tmp_path / "site")
        install_told(Site(tmp_path / "site"), tmp_path / "models")
        with live_server(tmp_path) as server:
            url = f"http://127.0.0.1:{server.port}/v1"
            with OpenAI(base_url=url, api_key="none", max_retries=0, timeout=60) as client:
                _check_told(client)


def _check_told(client: OpenAI) -> None:
    thinking = script(("reasoning", "h"), ("reasoning", "m"), ("text", "yes"), ("finish", "stop"))
    made = client.responses.create(model="told", input=thinking)
    assert [item.type for item in made.output] == ["reasoning", "message"] and made.output_text == "yes"
    assert made.output[0].content[0].text == "hm"
    assert client.responses.retrieve(made.id).output == made.output
    kinds = [event.type for event in client.responses.create(model="told", input=thinking, stream=True)]
    assert kinds.index("response.reasoning_text.done") < kinds.index("response.output_text.delta")
    fault = script(("text", "well"), ("raise", "the wires melted"))
    *_, error, failed = client.responses.create(model="told", input=fault, stream=True)
    assert (error.type, error.message, error.code) == ("error", "the wires melted", "engine_error")
    assert failed.type == "response.failed" and failed.response.error.message == "the wires melted"
    assert failed.response.output_text == "well" and failed.response.output[0].status == "incomplete"
    assert client.responses.retrieve(failed.response.id).output == failed.response.output
    with pytest.raises(openai.InternalServerError, match="wires"):
        client.responses.create(model="told", input=fault)
    shown = script(("request", ""), ("finish", "stop"))
    schema = {"type": "object"}
    made = client.responses.create(
        model="told", input=[{"role": "developer", "content": "first"}, {"role": "user", "content": shown}],
        instructions="Be kind", max_output_tokens=9,
    )  # fmt: skip
    assert made.output_text.index("Be kind") < made.output_text.index("first") and "max_tokens=9" in made.output_text
    again = client.responses.create(model="told", input=shown, previous_response_id=made.id, store=False)
    assert again.output_text.startswith("ChatRequest(messages=(Message(role='system', content='first'")
    assert "fit='error'" in again.output_text
    with pytest.raises(openai.BadRequestError, match="schema"):
        text: Any = {"format": {"type": "json_schema", "name": "x", "schema": schema}}
        client.responses.create(model="told", input=shown, text=text)


def test_a_response_belongs_to_its_own_server(start: StartServer) -> None:
    with start() as server:
        answer = server.get(f"/v1/responses/{GONE}")
        assert answer.status == 404 and json.loads(answer.body)["error"]["code"] == "not_found"
