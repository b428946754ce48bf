"""An engine that repeats the last message, word by word."""

import re
import time

from myllm_core import Embeddings, Engine, Finish, LoadOption, MemoryEstimate, ModelFacts, Support, TextDelta, Usage


class EchoEngine(Engine):
    """Messages in, the last one's words out."""

    name = "echo"
    formats = frozenset({"echo"})
    load_options = (LoadOption("delay_ms", 0, "milliseconds to wait before each word"),)
    sampling = frozenset({"temperature", "seed"})
    max_concurrency = 64

    def __init__(self, delay):
        self.delay = delay

    @classmethod
    def probe(cls, model):
        return Support(100, "made for this format")

    @classmethod
    def estimate(cls, model, options):
        return MemoryEstimate(host=2**20)

    @classmethod
    def load(cls, model, options, progress):
        progress(1.0)
        return cls(options["delay_ms"] / 1000)

    @property
    def facts(self):
        return ModelFacts(context_size=4096, capabilities=frozenset({"chat", "complete", "embed"}))

    def chat(self, request):
        return self._words(request.messages[-1].content, request.max_tokens)

    def complete(self, request):
        return self._words(request.prompt, request.max_tokens)

    def _words(self, text, limit):
        words = re.findall(r"\s*\S+|\s+$", text)
        taken = words[:limit]
        for word in taken:
            time.sleep(self.delay)
            yield TextDelta(word)
        yield Finish("stop" if len(taken) == len(words) else "length", Usage(len(words), len(taken)))

    def embed(self, inputs):
        return Embeddings([[float(len(text)), 1.0] for text in inputs], sum(len(text.split()) for text in inputs))
