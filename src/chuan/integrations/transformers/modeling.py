"""Chuan's decoder, as transformers wants one: `generate()`, and the published `chat`, `quantize`, `save_pretrained`.

In: a Baichuan folder or hub id. Out: what `AutoModelForCausalLM` returns for it. The weights are read by
`chuan.checkpoints`; no `.py` of the folder is ever looked at. Letters: B batch, T tokens, S all tokens, V vocabulary.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import wrapt
from torch import Tensor
from transformers import Cache, DynamicCache, GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from chuan.chat.baichuan import BaichuanChat
from chuan.checkpoints.checkpoint import load_decoder
from chuan.checkpoints.folder import open_folder, read_role_ids
from chuan.checkpoints.hub import fetch_from_hub
from chuan.checkpoints.save import Extras, save_folder
from chuan.checkpoints.source import DecoderSource
from chuan.errors import ChuanError
from chuan.inference.build import build_runner
from chuan.inference.device import choose_device, choose_dtype
from chuan.inference.language_model import LanguageModel, Messages
from chuan.inference.sampling import read_sampling_options
from chuan.integrations.transformers.configuration import BaichuanConfig, open_by
from chuan.integrations.transformers.tokenization import BaichuanTokenizer
from chuan.model.attention import attend
from chuan.model.config import ModelConfig
from chuan.model.decoder import Decoder
from chuan.quantization.methods import apply_quantization

# What transformers calls a cache in a model's output: `cache` since 5.24.
_CACHE_FIELD = "cache" if "cache" in CausalLMOutputWithPast.__dataclass_fields__ else "past_key_values"
# Arguments of generate() and Trainer that ask for nothing here: positions come as position_ids, and outputs are named.
_HARMLESS = ("cache_position", "return_dict", "token_type_ids", "num_items_in_batch")


class BaichuanForCausalLM(PreTrainedModel, GenerationMixin):
    """`chuan.model.decoder.Decoder` under transformers' interface."""

    config_class = BaichuanConfig
    base_model_prefix = "decoder"
    main_input_name = "input_ids"
    _supports_sdpa = True

    def __init__(self, config: BaichuanConfig, decoder: Decoder | None = None) -> None:
        super().__init__(config)
        self.decoder = decoder if decoder is not None else Decoder(ModelConfig.from_dict(config.to_dict()))
        self._answering: tuple[Any, LanguageModel] | None = None

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        config: BaichuanConfig | None = None,
        device_map: Any = None,
        dtype: str | torch.dtype | None = None,
        torch_dtype: str | torch.dtype | None = None,
        revision: str | None = None,
        **kwargs: Any,
    ) -> BaichuanForCausalLM:
        """Opens a folder or a hub id; options that would change the result and are not known are refused."""
        for name in (
            "cache_dir",
            "force_download",
            "local_files_only",
            "token",
            "low_cpu_mem_usage",
            "trust_remote_code",
        ):
            kwargs.pop(name, None)  # the hub's own environment variables decide; memory is always kept low
        unknown = sorted(key for key, value in kwargs.items() if value is not None and not key.startswith("_"))
        if unknown:
            raise ChuanError(f"from_pretrained got {unknown[0]!r}, which Chuan does not take; leave it out")
        path = Path(pretrained_model_name_or_path)
        if not path.is_dir():
            path = fetch_from_hub(str(pretrained_model_name_or_path), revision)
        checkpoint = open_folder(path)
        device = choose_device(_read_device_map(device_map))
        chosen = dtype if dtype is not None else torch_dtype
        decoder = load_decoder(checkpoint, choose_dtype("auto" if chosen is None else chosen, device), device)
        config = config if config is not None else BaichuanConfig.from_pretrained(path)
        config.name_or_path = str(pretrained_model_name_or_path)
        model = cls(config, decoder).eval()
        if checkpoint.generation_config:
            model.generation_config = GenerationConfig.from_dict(dict(checkpoint.generation_config))
        return model

    def chat(
        self,
        tokenizer: BaichuanTokenizer,
        messages: Messages,
        stream: bool = False,
        generation_config: GenerationConfig | None = None,
    ) -> str | Iterator[str]:
        """The published method: the answer, or with `stream=True` an iterator whose items are the whole text so far."""
        model = self._build_language_model(tokenizer, generation_config or self.generation_config)
        if stream:
            return _accumulate(model.chat(messages, stream=True))
        return model.chat(messages)

    def quantize(self, bits: int) -> BaichuanForCausalLM:
        """8- or 4-bit weights, in place, as published (`model.quantize(8)`)."""
        if bits not in (8, 4):
            raise ChuanError(f"quantize({bits!r}) is not known; use quantize(8) or quantize(4)")
        apply_quantization(self.decoder, bits)
        self._answering = None  # keys of other weights
        return self

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """Writes a Baichuan folder that the same snippet opens again, in the precision the model has."""
        for name in ("safe_serialization", "max_shard_size"):
            kwargs.pop(name, None)  # always safetensors, always in shards that load everywhere
        if kwargs:
            raise ChuanError(f"save_pretrained got {sorted(kwargs)[0]!r}, which Chuan does not take; leave it out")
        defaults = self.generation_config.to_dict() if self.generation_config is not None else {}
        kept = {key: value for key, value in defaults.items() if value is not None and not key.startswith("_")}
        extras = Extras(generation_config=kept)
        save_folder(save_directory, DecoderSource(self.decoder), None, extras, "baichuan", beside_others=True)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        past_key_values: Cache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """(B, T) ids -> (B, T, V) logits, with transformers' own caches, under their new name (5.24) and their old."""
        # An argument that a later transformers thinks of must not be passed over: it could change the answer.
        unknown = sorted(key for key, value in kwargs.items() if key not in _HARMLESS and value is not None and value)
        if unknown:
            raise ChuanError(f"forward got {unknown[0]!r}, which this model does not know; leave it out")
        cache = cache if cache is not None else past_key_values
        if cache is None and use_cache:
            cache = DynamicCache()
        seen = None if cache is None else _TransformersCache(cache)
        past = 0 if seen is None else seen.length
        mask = None
        if attention_mask is not None:
            if attention_mask.dim() != 2:
                raise ChuanError("attention_mask must be (batch, tokens); this model builds its own causal mask")
            attention_mask = attention_mask[:, : past + input_ids.shape[1]].bool()
            mask = None if bool(attention_mask.all()) else attention_mask
        logits = self.decoder(input_ids, seen, mask, position_ids, logits_to_keep)
        loss = None
        if labels is not None:
            items = kwargs.get("num_items_in_batch")
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.vocab_size, num_items_in_batch=items
            )
        return CausalLMOutputWithPast(loss=loss, logits=logits, **{_CACHE_FIELD: cache})

    @staticmethod
    def create_masks_for_generate(attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor | None:
        """transformers' hook for static caches: the padding mask is enough, the decoder adds causality itself."""
        return attention_mask

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.decoder.model.embed_tokens

    def get_output_embeddings(self) -> torch.nn.Module:
        return self.decoder.lm_head

    def _build_language_model(self, tokenizer: BaichuanTokenizer, config: GenerationConfig) -> LanguageModel:
        """Chuan's own way of answering over this model; kept, so that the next turn finds its keys."""
        if not isinstance(tokenizer, BaichuanTokenizer):
            raise ChuanError("chat needs the tokenizer that AutoTokenizer returns for this model")
        values = {key: value for key, value in config.to_dict().items() if value is not None}
        weight = self.decoder.model.embed_tokens.weight
        key = (id(tokenizer), weight.dtype, weight.device, repr(sorted(values.items(), key=lambda item: item[0])))
        if self._answering is not None and self._answering[0] == key:
            return self._answering[1]
        role_ids = read_role_ids(values, self.config.vocab_size)
        if role_ids is None:
            raise ChuanError(
                "this is a base model, or model.generation_config was not set from its folder: no user_token_id; "
                "use model.generate to continue a text"
            )
        eos = values.get("eos_token_id", tokenizer.eos_token_id)
        stop_ids = frozenset(eos if isinstance(eos, list) else [eos])
        ours = tokenizer.chuan
        options = read_sampling_options(values)
        name = str(self.config.name_or_path)
        model = LanguageModel(
            name,
            self.decoder,
            build_runner(self.decoder),
            ours,
            BaichuanChat(ours, *role_ids),
            options,
            stop_ids,
            Extras(values),
        )
        self._answering = (key, model)
        return model


class _TransformersCache:
    """One of transformers' caches, as the decoder asks for one."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self.length = int(cache.get_seq_length())

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        end = self.length + keys.shape[2]
        all_keys, all_values = self._cache.update(keys, values, layer)
        return attend(queries, all_keys[:, :, :end], all_values[:, :, :end], mask)  # a static cache has empty places

    def advance(self, tokens: int) -> None:
        self.length += tokens


def _accumulate(pieces: Iterator[str]) -> Iterator[str]:
    text = ""
    for piece in pieces:
        text += piece
        yield text


def _read_device_map(device_map: Any) -> str:
    """One device for the whole model: that is what a 7B needs, and what the snippet's "auto" means here."""
    if device_map is None:
        return "cpu"
    if isinstance(device_map, dict):
        if set(device_map) != {""}:
            raise ChuanError('device_map must put the model on one device: "auto", "cpu", "cuda:0" or {"": "cuda:0"}')
        device_map = device_map[""]
    return f"cuda:{device_map}" if isinstance(device_map, int) else str(device_map)


def register(auto: ModuleType) -> None:
    """Called once `transformers.models.auto.modeling_auto` is imported."""
    auto.AutoModelForCausalLM.register(BaichuanConfig, BaichuanForCausalLM, exist_ok=True)
    open_model = open_by(BaichuanForCausalLM.from_pretrained, ("trust_remote_code", "code_revision"))
    wrapt.wrap_function_wrapper(auto, "AutoModelForCausalLM.from_pretrained", open_model)
