"""Tiny models on disk, in every layout that Chuan reads, with the transformers model that each one must equal.

Weights are random but not small, so that every part of the network shows in the logits.
"""

import copy
import functools
import json
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np
import tokenizers
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from chuan.tokenizer.spm import load_model_proto

WeightFiles = Literal["safetensors", "bin", "sharded-bin", "sharded-safetensors"]
WIDTH, FFN, LAYERS, HEADS, CONTEXT = 64, 96, 2, 4, 256
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def write_baichuan_folder(
    path: Path,
    generation: Literal[1, 2] = 2,
    weights: WeightFiles = "safetensors",
    vocab_size: int | None = None,
    model_file: bytes | None = None,
    role_ids: tuple[int, int] | None = (195, 196),
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> dict[str, Tensor]:
    """A folder as Baichuan published it; returns its state dict. `vocab_size` None is the model file's, or 512."""
    path.mkdir(parents=True, exist_ok=True)
    if vocab_size is None:
        vocab_size = len(load_model_proto(model_file).pieces) if model_file else 512
    state = _build_baichuan_state(generation, vocab_size, dtype, seed)
    _save_state(path, state, weights)
    if model_file is not None:
        (path / "tokenizer.model").write_bytes(model_file)
    class_name, prefix = ("BaiChuanForCausalLM", "BaiChuan") if generation == 1 else ("BaichuanForCausalLM", "Baichuan")
    config = {
        "architectures": [class_name],
        "auto_map": {
            "AutoConfig": f"configuration_baichuan.{prefix}Config",
            "AutoModelForCausalLM": f"modeling_baichuan.{class_name}",
        },
        "model_type": "baichuan",
        "hidden_act": "silu",
        "hidden_size": WIDTH,
        "initializer_range": 0.02,
        "intermediate_size": FFN,
        "max_position_embeddings": CONTEXT,
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "torch_dtype": str(dtype).removeprefix("torch."),
        "transformers_version": "4.29.2",
        "use_cache": True,
        "vocab_size": vocab_size,
    } | {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    if generation == 2:
        config |= {"model_max_length": CONTEXT, "tokenizer_class": "BaichuanTokenizer", "z_loss_weight": 0}
    generation_config: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    if role_ids is not None:
        generation_config |= {"user_token_id": role_ids[0], "assistant_token_id": role_ids[1]}
        generation_config |= {"max_new_tokens": 16, "temperature": 0.3, "top_k": 5, "top_p": 0.85}
        generation_config |= {"repetition_penalty": 1.05, "do_sample": True}
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"}
    added = {"__type": "AddedToken", "lstrip": False, "normalized": True, "rstrip": False, "single_word": True}
    tokenizer_config = {
        "add_bos_token": False,
        "add_eos_token": False,
        "auto_map": {"AutoTokenizer": ["tokenization_baichuan.BaichuanTokenizer", None]},
        "clean_up_tokenization_spaces": False,
        "model_max_length": CONTEXT,
        "sp_model_kwargs": {},
        "tokenizer_class": "BaichuanTokenizer",
    } | {role: added | {"content": content} for role, content in special.items()}
    _save_json(path / "config.json", config)
    _save_json(path / "generation_config.json", generation_config | {"transformers_version": "4.29.2"})
    _save_json(path / "tokenizer_config.json", tokenizer_config)
    _save_json(path / "special_tokens_map.json", {role: {"content": text} for role, text in special.items()})
    _save_json(path / "added_tokens.json", {"<pad>": vocab_size})
    return state


def read_state(path: Path) -> dict[str, Tensor]:
    """Every tensor of a folder's safetensors."""
    return {name: tensor for file in sorted(path.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def write_booby_traps(path: Path, mark: Path) -> None:
    """The `.py` files of a published folder; each writes its name to `mark` when somebody imports it."""
    for name in (
        "modeling_baichuan",
        "configuration_baichuan",
        "tokenization_baichuan",
        "generation_utils",
        "quantizer",
    ):
        code = f"with open({str(mark)!r}, 'a') as mark:\n    mark.write('{name}\\n')\n"
        kinds = ("BaichuanForCausalLM", "BaiChuanForCausalLM", "BaichuanConfig", "BaiChuanConfig", "BaichuanTokenizer")
        classes = "".join(f"class {kind}:\n    pass\n" for kind in kinds)
        (path / f"{name}.py").write_text(f"{code}\n{classes}")


def build_baichuan_twin(state: dict[str, Tensor], generation: Literal[1, 2]) -> LlamaForCausalLM:
    """What a Baichuan state dict means, by hand: W_pack split, the second generation's head normalized in float32."""
    converted = {name: tensor.float() for name, tensor in state.items() if not name.endswith("inv_freq")}
    for name in [name for name in converted if ".W_pack." in name]:
        for part, rows in zip("qkv", converted.pop(name).chunk(3, dim=0), strict=True):
            converted[name.replace("W_pack", f"{part}_proj")] = rows
    if generation == 2:
        converted["lm_head.weight"] = F.normalize(converted["lm_head.weight"], dim=-1)
    config = _llama_config(len(converted["lm_head.weight"]), num_key_value_heads=HEADS, rms_norm_eps=1e-6)
    twin = LlamaForCausalLM(config).eval()
    twin.load_state_dict(converted)
    return twin


def write_llama_folder(
    path: Path,
    weights: WeightFiles = "safetensors",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    **config: Any,
) -> LlamaForCausalLM:
    """A folder by transformers' own `save_pretrained`, with a byte-level tokenizer; returns the model in float32."""
    backend = train_byte_level()
    model = build_llama(backend.get_vocab_size(), seed, **config)
    stored = copy.deepcopy(model).to(dtype)
    model.load_state_dict(stored.state_dict())  # rounded; converting back would leave rounded RoPE frequencies too
    shard = "150KB" if weights.startswith("sharded") else "1GB"
    stored.save_pretrained(path, max_shard_size=shard)
    if weights.endswith("bin"):
        for file in [*path.glob("*.safetensors"), *path.glob("*.index.json")]:
            file.unlink()
        _save_state(path, dict(stored.state_dict()), weights)
    backend.save(str(path / "tokenizer.json"))
    tokenizer_config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    tokenizer_config |= {"bos_token": CONTROL[1], "eos_token": CONTROL[2], "chat_template": CHATML}
    _save_json(path / "tokenizer_config.json", tokenizer_config)
    generation_config = {"bos_token_id": 1, "eos_token_id": 2, "do_sample": True, "temperature": 0.7, "top_p": 0.9}
    _save_json(path / "generation_config.json", generation_config)
    return model


def build_llama(vocab_size: int, seed: int = 0, **config: Any) -> LlamaForCausalLM:
    """A random Llama in eval mode, with grouped queries."""
    model = LlamaForCausalLM(_llama_config(vocab_size, **config)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(_random(parameter.shape, generator) + ("norm" in name))
    return model


def write_tiny_gguf(
    path: Path,
    kind: Literal["F32", "F16", "Q8_0", "Q4_0"] = "F32",
    seed: int = 0,
    architecture: str = "llama",
    tokenizer: bool = True,
    rope_factors: np.ndarray | None = None,
    **config: Any,
) -> LlamaForCausalLM:
    """A GGUF as llama.cpp's converter makes it; returns the model with the weights as they were rounded."""
    backend = train_byte_level()
    model = build_llama(backend.get_vocab_size(), seed, **config)
    writer = gguf.GGUFWriter(path, architecture)
    shape = model.config
    writer.add_context_length(shape.max_position_embeddings)
    writer.add_embedding_length(shape.hidden_size)
    writer.add_block_count(shape.num_hidden_layers)
    writer.add_feed_forward_length(shape.intermediate_size)
    writer.add_head_count(shape.num_attention_heads)
    writer.add_head_count_kv(shape.num_key_value_heads)
    writer.add_layer_norm_rms_eps(shape.rms_norm_eps)
    writer.add_rope_freq_base(shape.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(shape.hidden_size // shape.num_attention_heads)
    writer.add_vocab_size(shape.vocab_size)
    if tokenizer:
        _add_tokenizer(writer, backend)
    if rope_factors is not None:
        writer.add_tensor("rope_freqs.weight", rope_factors.astype(np.float32))
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, shape.num_hidden_layers)
    heads = {"q_proj": shape.num_attention_heads, "k_proj": shape.num_key_value_heads}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            array = parameter.numpy()
            quantization = gguf.GGMLQuantizationType[kind if array.ndim == 2 else "F32"]
            count = heads.get(name.split(".")[-2])
            if count:  # rotary pairs become neighbours
                array = array.reshape(count, 2, -1, array.shape[-1]).swapaxes(1, 2).reshape(array.shape)
            data = gguf.quants.quantize(array, quantization)
            writer.add_tensor(names.get_name(name, (".weight",)), data, raw_dtype=quantization)
            # Blocks run along the rows, so that quantizing and re-ordering rows commute.
            rounded = gguf.quants.quantize(parameter.numpy(), quantization)
            parameter.copy_(torch.from_numpy(gguf.quants.dequantize(rounded, quantization).copy()))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


@functools.cache
def train_byte_level() -> tokenizers.Tokenizer:
    """GPT-2's kind of tokenizer, with about 400 pieces; ids 0 to 2 are control tokens."""
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=CONTROL,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    text = ["the river runs to the sea and the sea runs to the river", "温故而知新，可以为师矣。", "百川东到海"] * 20
    backend.train_from_iterator(text, trainer)
    return backend


def _build_baichuan_state(generation: int, vocab_size: int, dtype: torch.dtype, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab_size, WIDTH)}
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        shapes |= {
            f"{prefix}self_attn.W_pack.weight": (3 * WIDTH, WIDTH),
            f"{prefix}self_attn.o_proj.weight": (WIDTH, WIDTH),
            f"{prefix}mlp.gate_proj.weight": (FFN, WIDTH),
            f"{prefix}mlp.up_proj.weight": (FFN, WIDTH),
            f"{prefix}mlp.down_proj.weight": (WIDTH, FFN),
            f"{prefix}input_layernorm.weight": (WIDTH,),
            f"{prefix}post_attention_layernorm.weight": (WIDTH,),
        }
    shapes |= {"model.norm.weight": (WIDTH,), "lm_head.weight": (vocab_size, WIDTH)}
    state = {name: (_random(shape, generator) + ("norm" in name)).to(dtype) for name, shape in shapes.items()}
    if generation == 1:
        size = WIDTH // HEADS
        for layer in range(LAYERS):
            inv_freq = 1.0 / (10000 ** (torch.arange(0, size, 2).float() / size))
            state[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = inv_freq
    return state


def _llama_config(vocab_size: int, **config: Any) -> LlamaConfig:
    sizes = {"hidden_size": WIDTH, "intermediate_size": FFN, "num_hidden_layers": LAYERS}
    sizes |= {"num_attention_heads": HEADS, "num_key_value_heads": HEADS // 2, "max_position_embeddings": CONTEXT}
    return LlamaConfig(vocab_size=vocab_size, **(sizes | {"rms_norm_eps": 1e-5} | config))


def _random(shape: tuple[int, ...] | torch.Size, generator: torch.Generator) -> Tensor:
    return 0.2 * torch.randn(*shape, generator=generator)


def _save_state(path: Path, state: dict[str, Tensor], weights: WeightFiles) -> None:
    stem, suffix = ("pytorch_model", "bin") if weights.endswith("bin") else ("model", "safetensors")
    names = list(state)
    half = len(names) // 2
    groups = [names[:half], names[half:]] if weights.startswith("sharded") else [names]
    weight_map = {}
    for index, group in enumerate(groups, start=1):
        file = f"{stem}-{index:05}-of-{len(groups):05}.{suffix}" if len(groups) > 1 else f"{stem}.{suffix}"
        weight_map |= dict.fromkeys(group, file)
        part = {name: state[name] for name in group}
        if suffix == "bin":
            torch.save(part, path / file)
        else:
            save_file(part, path / file, metadata={"format": "pt"})
    if len(groups) > 1:
        size = sum(tensor.nbytes for tensor in state.values())
        table = {"metadata": {"total_size": size}, "weight_map": weight_map}
        _save_json(path / f"{stem}.{suffix}.index.json", table)


def _save_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, ensure_ascii=False, indent=2), encoding="utf-8")


def _add_tokenizer(writer: gguf.GGUFWriter, backend: tokenizers.Tokenizer) -> None:
    vocabulary = sorted(backend.get_vocab().items(), key=lambda item: item[1])
    merges = json.loads(backend.to_str())["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([piece for piece, _ in vocabulary])
    writer.add_token_types([3 if piece in CONTROL else 1 for piece, _ in vocabulary])
    writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(CHATML)
