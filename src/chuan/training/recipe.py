"""The recipes of training: what is common to all kinds, pre-training, and fine-tuning.

In: a TOML file. Out: typed settings, each part's beside the code that it configures.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from chuan.errors import ChuanError
from chuan.model.config import ModelConfig
from chuan.recipes import Settings
from chuan.training.lora import LoraSettings
from chuan.training.loss import LossSettings
from chuan.training.optimizer import OptimizerSettings, ScheduleSettings
from chuan.training.parallel import ParallelSettings
from chuan.training.state import StateSettings
from chuan.training.watch import WatchSettings


class BatchSettings(Settings):
    """`rows` are a step's, over all ranks; a rank takes `micro_rows` of its share at a time, which changes nothing but
    memory and speed."""

    rows: int = Field(ge=1)
    micro_rows: int = Field(default=1, ge=1)


class TrainRecipe(Settings):
    """What every kind of training has."""

    output: str = Field(min_length=1)  # the folder of the run
    seed: int = 0
    steps: int = Field(ge=1)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    # Of the products; weights stay in float32. float8 is that of the layers' linears, and bfloat16 of the rest.
    dtype: Literal["auto", "bfloat16", "float32", "float8"] = "auto"
    batch: BatchSettings
    optimizer: OptimizerSettings
    schedule: ScheduleSettings = Field(default_factory=ScheduleSettings)
    loss: LossSettings = Field(default_factory=LossSettings)
    parallel: ParallelSettings = Field(default_factory=ParallelSettings)
    state: StateSettings = Field(default_factory=StateSettings)
    watch: WatchSettings = Field(default_factory=WatchSettings)

    @model_validator(mode="after")
    def _float8_works(self) -> Self:
        if self.dtype == "float8" and self.parallel.tensor > 1:
            raise ValueError("dtype float8 does not work with parallel.tensor above 1; use ranks that shard")
        return self


class ModelSettings(Settings):
    """The shape of a new model; names and defaults as in a Llama `config.json`."""

    vocab_size: int = Field(ge=1)
    hidden_size: int = Field(ge=1)
    num_hidden_layers: int = Field(ge=1)
    num_attention_heads: int = Field(ge=1)
    num_key_value_heads: int = Field(default=0, ge=0)  # 0: as many as there are heads
    intermediate_size: int = Field(default=0, ge=0)  # 0: 8/3 of the width, rounded up to a multiple of 256
    max_position_embeddings: int = Field(ge=1)
    rms_norm_eps: float = Field(default=1e-6, gt=0, allow_inf_nan=False)
    rope_theta: float = Field(default=10000.0, gt=0, allow_inf_nan=False)
    tie_word_embeddings: bool = False

    def build_config(self) -> ModelConfig:
        return ModelConfig(**self.model_dump())

    @model_validator(mode="after")
    def _fits(self) -> Self:
        try:
            self.build_config()
        except ChuanError as error:
            raise ValueError(str(error)) from None
        return self


class PretrainData(Settings):
    """What a model is trained on from nothing: the shards of `chuan corpus build`, and their tokenizer."""

    shards: str
    tokenizer: str
    length: int = Field(ge=2)  # tokens of a row


class PretrainRecipe(TrainRecipe):
    """What `chuan pretrain` reads."""

    model: ModelSettings
    data: PretrainData

    @model_validator(mode="after")
    def _rows_fit(self) -> Self:
        if self.data.length > self.model.max_position_embeddings:
            raise ValueError(
                f"data.length {self.data.length} is more than model.max_position_embeddings "
                f"{self.model.max_position_embeddings}"
            )
        return self


class ChatSettings(Settings):
    """A chat format for a base that has none, or another one: a Jinja template, or Baichuan's with two control pieces
    of the tokenizer as the marks of the roles."""

    template: str | None = None  # a file
    user: str | None = None
    assistant: str | None = None

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        marks = (self.user is None, self.assistant is None)
        if marks[0] != marks[1] or marks[0] == (self.template is None):
            raise ValueError("chat wants a template, or user and assistant, and not both")
        return self


class FinetuneData(Settings):
    """Conversations to learn the answers of; conversations.py says in which forms."""

    files: tuple[str, ...] = Field(min_length=1)
    length: int = Field(ge=2)  # tokens of a row; what is longer is cut
    validation: float = Field(default=0.0, ge=0, lt=1)  # the share of conversations that is not learned from
    bad: float = Field(default=0.01, ge=0, le=1)  # the largest share of records that may be of no use


class FinetuneRecipe(TrainRecipe):
    """What `chuan finetune` reads. With `lora` an adapter is trained, without it every weight."""

    base: str = Field(min_length=1)
    steps: int = Field(default=0, ge=0)  # 0: as many as `epochs` passes over the rows take
    epochs: float = Field(default=3.0, gt=0, allow_inf_nan=False)
    data: FinetuneData
    chat: ChatSettings | None = None
    lora: LoraSettings | None = None

    @model_validator(mode="after")
    def _works(self) -> Self:
        if self.lora is None:
            return self
        if self.dtype == "float8":
            raise ValueError("dtype float8 is for weights that are trained, and lora trains none; use bfloat16")
        if self.parallel.tensor > 1:
            raise ValueError("lora does not work with parallel.tensor above 1; use ranks that shard")
        if self.lora.bits != 16 and self.parallel.compile:
            raise ValueError("parallel.compile does not work with lora.bits below 16; leave one of them out")
        if self.loss.normalized_head:
            raise ValueError("loss.normalized_head changes the base's head, which lora does not train; leave it out")
        return self
