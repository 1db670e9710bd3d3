"""What the files of each family call the decoder's weights: one table a layout, for reading and for writing.

In: a `ModelConfig`. Out: for every weight of `chuan.model.decoder`, the `Part` of a file that it is. Knows no files.
Sources: the published `modeling_baichuan.py` of both generations, and llama.cpp's names for GGUF.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from chuan.model.config import ModelConfig
from chuan.quantization.linear import QuantizedLinear
from chuan.quantization.methods import Stored, dequantize

# Buffers that some files carry and nobody needs: they are computed from the configuration.
IGNORED = re.compile(r".*\.rotary_emb\.inv_freq|.*\.self_attn\.(causal_)?mask|rope_freqs\.weight")


@dataclass(frozen=True)
class Part:
    """A weight of a file, or some of its rows, and what is done to it when it is read and when it is written."""

    source: str
    source_rows: int | None = None  # how many rows the whole weight has, where only some are taken
    rows: slice | None = None
    change: Callable[[Tensor, torch.dtype], Tensor] | None = None  # gives a new tensor, never a view
    undo: Callable[[Tensor], Tensor] | None = None

    def take(self, stored: Stored, dtype: torch.dtype) -> Stored:
        """The decoder's weight, from the whole weight of the file; `dtype` is what floats will be kept in."""
        if self.rows is not None:
            stored = stored.take_rows(self.rows) if isinstance(stored, QuantizedLinear) else stored[self.rows]
        return stored if self.change is None else self.change(dequantize(stored), dtype)


Layout = dict[str, Part]


def group_by_source(layout: Layout) -> dict[str, list[str]]:
    """The names of a file, each with the decoder's weights that it holds, in the order of their rows."""
    groups: dict[str, list[str]] = {}
    for name, part in layout.items():
        groups.setdefault(part.source, []).append(name)
    return groups


def list_weights(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The decoder's weights and their shapes, in reading order."""
    width, ffn = config.hidden_size, config.intermediate_size
    queries, keys = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    linears = {
        "self_attn.q_proj": (queries, width),
        "self_attn.k_proj": (keys, width),
        "self_attn.v_proj": (keys, width),
        "self_attn.o_proj": (width, queries),
        "mlp.gate_proj": (ffn, width),
        "mlp.up_proj": (ffn, width),
        "mlp.down_proj": (width, ffn),
    }
    weights: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config.vocab_size, width)}
    for layer in range(config.num_hidden_layers):
        prefix = f"model.layers.{layer}."
        for name, shape in linears.items():
            weights[f"{prefix}{name}.weight"] = shape
            if config.attention_bias if name.startswith("self_attn") else config.mlp_bias:
                weights[f"{prefix}{name}.bias"] = shape[:1]
        weights[f"{prefix}input_layernorm.weight"] = (width,)
        weights[f"{prefix}post_attention_layernorm.weight"] = (width,)
    weights["model.norm.weight"] = (width,)
    if not config.tie_word_embeddings:
        weights["lm_head.weight"] = (config.vocab_size, width)
    return weights


def build_llama_layout(config: ModelConfig) -> Layout:
    """Hugging Face's names: ours."""
    return {name: Part(name) for name in list_weights(config)}


def build_baichuan_layout(config: ModelConfig, normalized_head: bool) -> Layout:
    """Both generations: q, k and v are the rows of one W_pack; the second normalizes the head's rows (NormHead)."""
    layout = build_llama_layout(config)
    width = config.hidden_size
    for layer in range(config.num_hidden_layers):
        attention = f"model.layers.{layer}.self_attn."
        for index, name in enumerate(("q_proj", "k_proj", "v_proj")):
            rows = slice(index * width, (index + 1) * width)
            layout[f"{attention}{name}.weight"] = Part(f"{attention}W_pack.weight", 3 * width, rows)
    if normalized_head:
        layout["lm_head.weight"] = Part("lm_head.weight", change=fold_norm_head)
    return layout


def build_gguf_layout(config: ModelConfig, normalized_head: bool = False) -> Layout:
    """llama.cpp's names; its rotary pairs are neighbours where ours are halves apart, so q and k are re-ordered."""
    names = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    outer = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }
    heads = {"self_attn.q_proj": config.num_attention_heads, "self_attn.k_proj": config.num_key_value_heads}
    layout: Layout = {}
    for name in list_weights(config):
        if name in outer:
            layout[name] = Part(
                outer[name], change=fold_norm_head if name == "lm_head.weight" and normalized_head else None
            )
            continue
        _, _, layer, module = name.split(".", 3)
        module, _, kind = module.rpartition(".")
        source = f"blk.{layer}.{names[module]}.{kind}"
        if module in heads:
            count = heads[module]
            change = functools.partial(_separate_pairs, heads=count)
            layout[name] = Part(source, change=change, undo=functools.partial(join_pairs, heads=count))
        else:
            layout[name] = Part(source)
    return layout


def fold_norm_head(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """NormHead folded once: rows of unit length, computed in float32 (Baichuan 2 report, appendix B; eps 1e-12).

    A head that was folded in this very type before (after an evaluation, or by us) is left as it is.
    """
    if weight.dtype == dtype and has_unit_rows(weight):
        return weight.clone()
    folded = torch.empty_like(weight, dtype=dtype)
    for start in range(0, weight.shape[0], 4096):  # in blocks: a float32 copy of the whole head would be 2 GB
        block = slice(start, start + 4096)
        folded[block] = F.normalize(weight[block].float(), dim=-1, eps=1e-12).to(dtype)
    return folded


def has_unit_rows(weight: Tensor) -> bool:
    """Whether all rows are of unit length, but for the rounding of their type; rows of zeros count as such."""
    tolerance = max(torch.finfo(weight.dtype).eps, 1e-6)
    for start in range(0, weight.shape[0], 4096):
        lengths = weight[start : start + 4096].float().norm(dim=-1)
        if not bool((((lengths - 1).abs() <= tolerance) | (lengths == 0)).all()):
            return False
    return True


def separate_pairs(rows: Tensor, heads: int) -> Tensor:
    """Rows of q or k from llama.cpp's order (x0 y0 x1 y1 ...) to Hugging Face's (x0 x1 ... y0 y1 ...), head by head."""
    return rows.reshape(heads, -1, 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


def _separate_pairs(rows: Tensor, dtype: torch.dtype, heads: int) -> Tensor:
    return separate_pairs(rows, heads)


def join_pairs(rows: Tensor, heads: int) -> Tensor:
    """The inverse of `separate_pairs`."""
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)
