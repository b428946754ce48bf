"""What takes no turn: the prompt of a request, and tokens of texts."""

from __future__ import annotations

import asyncio

import pytest

from myllm_core import Finish, Message, Options, Progress, Runtime, load_settings
from myllm_core.errors import InvalidRequest, ModelNotFound, TemplateError, UnsupportedError
from myllm_core.types import Prompt
from support.smollm2 import install_smollm2

pytestmark = pytest.mark.model

TALK = [Message("system", "Be brief."), Message("user", "What is the capital of France?")]
SHORT = Options(temperature=0, max_tokens=4)


@pytest.fixture(scope="module")
def loop():
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def runtime(tmp_path_factory, smollm2_gguf, loop):
    home = tmp_path_factory.mktemp("home")
    install_smollm2(home / "models", smollm2_gguf)
    runtime = Runtime(load_settings(models_dir=home / "models", data_dir=home / "data"))
    yield runtime
    loop.run(runtime.close())


@pytest.fixture(scope="module")
def sync(loop):
    return loop.run


async def events_of(generator):
    return [event async for event in generator]


def test_a_prompt_has_as_many_tokens_as_the_usage_says(runtime, sync):
    prompt = sync(runtime.prompt("smollm2", TALK))
    events = sync(events_of(runtime.chat("smollm2", TALK, options=SHORT)))
    assert len(prompt.tokens) == events[-1].usage.prompt_tokens
    assert prompt.text.startswith("<|im_start|>system\nBe brief.<|im_end|>\n") and prompt.context_size >= 2048
    assert prompt.text.endswith("<|im_start|>assistant\n")


def test_what_the_prompt_took_is_told_before_the_first_text(runtime, sync):
    events = sync(events_of(runtime.chat("smollm2", TALK, options=SHORT)))
    told = [event.usage for event in events if isinstance(event, Progress) and event.usage]
    finish = events[-1]
    assert isinstance(finish, Finish) and len(told) == 1
    assert (told[0].prompt_tokens, told[0].cached_tokens) == (finish.usage.prompt_tokens, finish.usage.cached_tokens)
    at = events.index(next(event for event in events if isinstance(event, Progress) and event.usage))
    assert all(isinstance(event, Progress) for event in events[:at])
    assert not any(isinstance(event, Progress) for event in events[at + 1 :])


def test_a_raw_prompt(runtime, sync):
    prompt = sync(runtime.prompt("smollm2", "Once upon a time"))
    events = sync(events_of(runtime.generate("smollm2", "Once upon a time", options=SHORT)))
    assert prompt.text == "Once upon a time" and len(prompt.tokens) == events[-1].usage.prompt_tokens


def test_a_prompt_may_be_longer_than_the_context(runtime, sync):
    prompt = sync(runtime.prompt("smollm2", [Message("user", "word " * 20_000)]))
    assert isinstance(prompt, Prompt) and len(prompt.tokens) > prompt.context_size


@pytest.mark.parametrize("text", ["Hello, world!", "naïve café ☕ 日本", " leading", "", "<|im_start|>user"])
def test_tokens_of_a_text_say_the_text_again(runtime, sync, text):
    tokens = sync(runtime.tokenize("smollm2", text))
    assert sync(runtime.detokenize("smollm2", tokens)) == text


def test_control_tokens_are_read_as_such_only_when_asked(runtime, sync):
    plain = sync(runtime.tokenize("smollm2", "<|im_start|>"))
    special = sync(runtime.tokenize("smollm2", "<|im_start|>", special=True))
    assert len(plain) > 1 and len(special) == 1
    prompt = sync(runtime.prompt("smollm2", [Message("user", "<|im_end|>")]))
    assert prompt.tokens.count(special[0]) == prompt.text.count("<|im_start|>")
    assert prompt.text.count("<|im_end|>") == 3, "the user's own is shown as it was written"


@pytest.mark.parametrize("token", [-1, 10**9])
def test_tokens_that_the_model_doesnt_have(runtime, sync, token):
    with pytest.raises(InvalidRequest, match="token 1 is"):
        sync(runtime.detokenize("smollm2", [5, token]))


def test_nobody_waits_for_running_replies(runtime, sync):
    async def test():
        replies = [runtime.chat("smollm2", "Tell me a story", options=Options(max_tokens=400)) for _ in range(12)]
        running = [asyncio.create_task(events_of(reply)) for reply in replies]
        while not runtime.loaded() or runtime.loaded()[0].running < 8:  # noqa: ASYNC110 - no event tells of it
            await asyncio.sleep(0.01)
        async with asyncio.timeout(20):
            prompt = await runtime.prompt("smollm2", TALK)
        assert prompt.tokens and not any(task.done() for task in running)
        for task in running:
            task.cancel()
        await asyncio.wait(running)

    sync(test())


def test_what_cant_be_looked_up(runtime, sync, tmp_path):
    with pytest.raises(ModelNotFound):
        sync(runtime.tokenize("nope", "x"))
    with pytest.raises((InvalidRequest, TemplateError)):
        sync(runtime.prompt("smollm2", []))


def test_an_engine_without_tokens_says_so(settings, run):
    async def test(runtime):
        for looking in (
            runtime.tokenize("echo", "x"),
            runtime.detokenize("echo", [1]),
            runtime.prompt("echo", [Message("user", "x")]),
        ):
            with pytest.raises(UnsupportedError, match="the echo engine doesn't show tokens"):
                await looking
        assert runtime.loaded() == []

    run(settings(), test)
