"""Loading the way that a user does, for tests: the logits, or the one line that says why not."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from chuan.checkpoints.checkpoint import Checkpoint, load_decoder
from chuan.errors import ChuanError
from chuan.inference.load import open_checkpoint

CPU = torch.device("cpu")


@torch.inference_mode()
def load_logits(path: Path, bits: int | None = None) -> Tensor:
    """What a folder or file answers to a fixed batch, in float32."""
    checkpoint = open_checkpoint(path)
    return load_decoder(checkpoint, torch.float32, CPU, bits)(build_ids(checkpoint.config.vocab_size))


@torch.inference_mode()
def difference_of_logits(checkpoint: Checkpoint, twin: LlamaForCausalLM) -> float:
    """The largest difference in float32 between Chuan's logits and transformers', relative to the largest logit."""
    ids = build_ids(checkpoint.config.vocab_size)
    expected = twin(ids).logits
    found = load_decoder(checkpoint, torch.float32, CPU)(ids)
    assert float(expected.std()) > 0.01
    return float((found - expected).abs().max() / expected.abs().max())


def build_ids(vocab_size: int) -> Tensor:
    """A batch of two random prompts."""
    return torch.randint(vocab_size, (2, 24), generator=torch.Generator().manual_seed(1))


def refusal(call: Callable[..., Any], *arguments: Any) -> str:
    """The message of the `ChuanError` that the call raises, which must be one line that says what is wrong."""
    with pytest.raises(ChuanError) as info:
        call(*arguments)
    message = str(info.value)
    assert len(message) > 20
    assert message.isprintable(), repr(message)
    return message


def attempt(call: Callable[..., Any], *arguments: Any) -> Any:
    """What the call returns, or the one line of its `ChuanError`; any other exception is a bug and comes through."""
    try:
        return call(*arguments)
    except ChuanError as error:
        message = str(error)
    assert message.isprintable(), repr(message)
    return message
