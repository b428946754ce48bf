"""Chat templates for models that bring none, by family, with the strings that end a reply where no token does.

Each follows the format that the family's authors document on their model cards.
"""

# ruff: noqa: E501 - a template reads best on one line
from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Fallback:
    """A template; ``marker`` is the special token that tells the family, ``words`` are parts of model names that do."""

    source: str
    marker: str = ""
    words: tuple[str, ...] = ()
    stop: tuple[str, ...] = ()


def _turns(system: str, user: str, assistant: str, begin: str) -> str:
    return (
        "{% for m in messages %}"
        "{% if m.role == 'system' %}"
        + system
        + "{% elif m.role == 'assistant' %}"
        + assistant
        + "{% else %}"
        + user
        + "{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}" + begin + "{% endif %}"
    )


_CHATML = "{{ '<|im_start|>' ~ m.role ~ '\\n' ~ m.content ~ '<|im_end|>\\n' }}"
_LLAMA3 = "{{ '<|start_header_id|>' ~ m.role ~ '<|end_header_id|>\\n\\n' ~ m.content | trim ~ '<|eot_id|>' }}"
_ZEPHYR = "{{ '<|' ~ m.role ~ '|>\\n' ~ m.content ~ eos_token ~ '\\n' }}"
_PHI3 = "{{ '<|' ~ m.role ~ '|>\\n' ~ m.content ~ '<|end|>\\n' }}"

FALLBACKS: dict[str, Fallback] = {
    "chatml": Fallback(_turns(_CHATML, _CHATML, _CHATML, "{{ '<|im_start|>assistant\\n' }}"), "<|im_start|>", ("qwen", "smollm", "hermes", "yi-")),
    "llama3": Fallback(
        _turns(_LLAMA3, _LLAMA3, _LLAMA3, "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}"), "<|start_header_id|>", ("llama-3", "llama3")
    ),
    "gemma": Fallback(
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        "{{ '<start_of_turn>' ~ ('model' if m.role == 'assistant' else 'user') ~ '\\n' ~ m.content | trim ~ '<end_of_turn>\\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}",
        "<start_of_turn>",
        ("gemma",),
    ),
    "phi3": Fallback(_turns(_PHI3, _PHI3, _PHI3, "{{ '<|assistant|>\\n' }}"), "<|end|>", ("phi-3", "phi-4", "phi3", "phi4")),
    "zephyr": Fallback(_turns(_ZEPHYR, _ZEPHYR, _ZEPHYR, "{{ '<|assistant|>\\n' }}"), "", ("zephyr", "tinyllama")),
    "mistral": Fallback(
        "{% set ns = namespace(system='') %}{% for m in messages %}"
        "{% if m.role == 'system' %}{% set ns.system = m.content ~ '\\n\\n' %}"
        "{% elif m.role == 'assistant' %}{{ ' ' ~ m.content | trim ~ eos_token }}"
        "{% else %}{{ '[INST] ' ~ ns.system ~ m.content ~ ' [/INST]' }}{% set ns.system = '' %}{% endif %}{% endfor %}",
        "[INST]",
        ("mistral", "mixtral"),
    ),
    "llama2": Fallback(
        "{% set ns = namespace(system='') %}{% for m in messages %}"
        "{% if m.role == 'system' %}{% set ns.system = '<<SYS>>\\n' ~ m.content ~ '\\n<</SYS>>\\n\\n' %}"
        "{% elif m.role == 'assistant' %}{{ ' ' ~ m.content | trim ~ ' ' ~ eos_token }}"
        "{% else %}{{ bos_token ~ '[INST] ' ~ ns.system ~ m.content | trim ~ ' [/INST]' }}{% set ns.system = '' %}{% endif %}{% endfor %}",
        "",
        ("llama-2", "llama2", "codellama"),
    ),
    "vicuna": Fallback(
        _turns("{{ m.content ~ '\\n\\n' }}", "{{ 'USER: ' ~ m.content ~ '\\n' }}", "{{ 'ASSISTANT: ' ~ m.content ~ eos_token ~ '\\n' }}", "{{ 'ASSISTANT:' }}"),
        "",
        ("vicuna",),
        ("\nUSER:",),
    ),
    "alpaca": Fallback(
        _turns(
            "{{ m.content ~ '\\n\\n' }}", "{{ '### Instruction:\\n' ~ m.content ~ '\\n\\n' }}",
            "{{ '### Response:\\n' ~ m.content ~ eos_token ~ '\\n\\n' }}", "{{ '### Response:\\n' }}",
        ),
        "",
        ("alpaca", "wizard"),
        ("\n### Instruction:",),
    ),
    "phi": Fallback(
        _turns("{{ m.content ~ '\\n' }}", "{{ 'Instruct: ' ~ m.content ~ '\\n' }}", "{{ 'Output: ' ~ m.content ~ '\\n' }}", "{{ 'Output:' }}"),
        "",
        ("phi-2", "phi2", "phi-1"),
        ("\nInstruct:",),
    ),
}  # fmt: skip
"""Every fallback by its family's name."""

DEFAULT = "chatml"


def choose_fallback(special_tokens: tuple[str, ...], names: str) -> tuple[str, Fallback]:
    """The fallback whose marker is among the special tokens, else whose word is in ``names``, else chatml."""
    for name, fallback in FALLBACKS.items():
        if fallback.marker and fallback.marker in special_tokens:
            return name, fallback
    lowered = names.lower()
    for name, fallback in FALLBACKS.items():
        if any(word in lowered for word in fallback.words):
            return name, fallback
    return DEFAULT, FALLBACKS[DEFAULT]
