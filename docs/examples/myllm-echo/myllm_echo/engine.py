"""An engine that repeats the last message, word by word, calls the tools that it names, and describes its images."""

import re
import time

from myllm_core import (
    Embeddings,
    Engine,
    Finish,
    LoadOption,
    MemoryEstimate,
    ModelFacts,
    Support,
    TextDelta,
    ToolCallDelta,
    Usage,
)
from myllm_core.errors import UnsupportedError
from myllm_core.images import decode_rgb

CALL = re.compile(r"^call (\S+) (\{.*\})$", re.MULTILINE)
WORD = re.compile(r"\s*\S+|\s+$")


class EchoEngine(Engine):
    """Messages in, the last one's words out. A line ``call NAME {…}`` calls the tool NAME when it is given one.

    Where an image stands it says how large that is and of which color in the mean: ``[640x480 #a0b4c8]``.
    """

    name = "echo"
    formats = frozenset({"echo"})
    load_options = (
        LoadOption("delay_ms", 0, "milliseconds to wait before each word"),
        LoadOption("sees", True, "whether it reads images"),
    )
    sampling = frozenset({"temperature", "seed"})
    max_concurrency = 64

    def __init__(self, delay, sees):
        self.delay = delay
        self.sees = sees

    @classmethod
    def probe(cls, model):
        return Support(100, "made for this format")

    @classmethod
    def estimate(cls, model, options):
        return MemoryEstimate(host=2**20)

    @classmethod
    def load(cls, model, options, progress):
        progress(1.0)
        return cls(options["delay_ms"] / 1000, options["sees"])

    @property
    def facts(self):
        vision = {"vision"} if self.sees else set()
        return ModelFacts(context_size=4096, capabilities=frozenset({"chat", "complete", "embed", "tools"} | vision))

    def chat(self, request):
        text, tools = described(request.messages[-1]), request.tools
        if tools is None or tools.choice == "none":
            return self._words(text, request)
        names = [tool.name for tool in tools.functions if tools.only in (None, tool.name)]
        calls = [(name, arguments) for name, arguments in CALL.findall(text) if name in names]
        if calls:
            return self._calls(calls[: None if tools.parallel else 1], len(text.split()))
        if tools.choice == "required":
            raise UnsupportedError(f"write a line to repeat as a call: call {names[0]} {{}}")
        return self._words(text, request)

    def _calls(self, calls, prompt):
        for index, (name, arguments) in enumerate(calls):
            yield ToolCallDelta(index, f"call_{index}_{time.time_ns()}", name)
            for piece in re.findall(r".{1,5}", arguments):
                time.sleep(self.delay)
                yield ToolCallDelta(index, arguments=piece)
        yield Finish("tool_calls", Usage(prompt, len(calls)))

    def complete(self, request):
        return self._words(request.prompt, request)

    def _words(self, text, request):
        found = [(text.index(stop), -len(stop), stop) for stop in request.stop if stop in text]
        end, _, stop = min(found, default=(len(text), 0, None))
        words = WORD.findall(text[:end])
        taken = words[: request.max_tokens]
        for word in taken:
            time.sleep(self.delay)
            yield TextDelta(word)
        usage = Usage(len(WORD.findall(text)), len(taken))
        if len(taken) < len(words):
            yield Finish("length", usage)
        else:
            yield Finish("stop", usage, stop=stop)

    def embed(self, inputs):
        return Embeddings([[float(len(text)), 1.0] for text in inputs], sum(len(text.split()) for text in inputs))


def described(message):
    """The text of a message, with descriptions where its images stand."""
    pieces, end = [], 0
    for image in message.images:
        pixels = decode_rgb(image)
        color = bytes(pixels.reduce(pixels.size).getpixel((0, 0))).hex()
        pieces.append(f"{message.content[end : image.at]}[{pixels.width}x{pixels.height} #{color}]")
        end = image.at
    return "".join(pieces) + message.content[end:]
