"""The options of ``OptimumEngine.load``: strict, with ranges, and named as Optimum and ONNX Runtime name them."""

from __future__ import annotations

from pydantic import Field

from myllm_core.load_options import LoadOptions


class LoadSettings(LoadOptions):
    """How a model is loaded. 0 means: what fits this model."""

    max_length: int = Field(
        0, ge=0, le=2**24, description="tokens that one sequence may hold; 0 takes the trained ones, at most 4096"
    )
    max_sequences: int = Field(2, ge=1, le=64, description="how many sequences take turns in each step")
    chunk_size: int = Field(128, ge=1, le=2**16, description="most tokens of a prompt in one forward pass")
    intra_op_num_threads: int = Field(
        0,
        ge=0,
        le=512,
        description="processor threads; 0 takes the physical cores that affinity and control groups leave us",
    )
    file_name: str = Field("", description="the ONNX file to load, when the model has several; empty takes the first")
