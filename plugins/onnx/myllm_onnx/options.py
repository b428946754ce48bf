"""The options of ``OnnxEngine.load``: strict, with ranges, and named as ONNX Runtime and its GenAI name them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from myllm_core.load_options import LoadOptions

Provider = Literal["cpu", "cuda", "dml"]


class LoadSettings(LoadOptions):
    """How a model is loaded. 0 means: what fits this machine and model."""

    max_length: int = Field(
        0, ge=0, le=2**24, description="tokens that one sequence may hold; 0 chooses by model and memory"
    )
    max_batch_size: int = Field(4, ge=1, le=64, description="how many sequences run at the same time")
    chunk_size: int = Field(128, ge=1, le=2**16, description="most tokens of a prompt in one forward pass")
    provider: Provider = Field("cpu", description="what computes: cpu, cuda or dml (DirectML), where it is installed")
    intra_op_num_threads: int = Field(
        0,
        ge=0,
        le=512,
        description="processor threads; 0 takes the physical cores that affinity and control groups leave us",
    )
    allow_spinning: bool = Field(
        False, description="threads wait for work by spinning: a little faster alone, slower beside other programs"
    )
    file_name: str = Field("", description="the ONNX file to load, when the model has several; empty takes the first")
