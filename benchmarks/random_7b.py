"""A Baichuan-7B of random weights in four forms: int8 and int4 folders of Chuan's, and GGUFs of Q8_0 and Q4_0.

    python benchmarks/random_7b.py FOLDER           # 24 GB of disk, 5 GB of memory, some minutes

A model of one layer is made in floats and converted by `chuan convert`; its layer is then written 32 times under the
names of the others. So all four hold the same weights, in distinct pages of the disk as those of a real model are, and
nothing here knows a format.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import gguf
import torch
from full_size_chat import build_vocabulary
from safetensors import safe_open
from safetensors.torch import save_file

from chuan.inference.convert import convert
from chuan.model.config import PRESETS, ModelConfig

CONFIG = PRESETS["baichuan-7b"]
INT8, INT4, Q8, Q4 = "int8", "int4", "q8_0.gguf", "q4_0.gguf"


def main() -> int:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for form in (INT8, INT4, Q8, Q4):
        build(folder, form)
    clean(folder)
    return 0


def build(folder: Path, form: str, config: ModelConfig = CONFIG) -> Path:
    """Writes one form, if it is not there yet; its path."""
    target = folder / form
    if target.exists():
        return target
    print(f"writing {target}", flush=True)
    floats, layer, partial = folder / "one_layer", folder / f"one_layer_{form}", folder / f"partial_{form}"
    if not floats.is_dir():
        write_one_layer(floats, config)
    if not layer.exists():
        if form.endswith(".gguf"):
            convert(floats, layer, "gguf", gguf_type=form.removesuffix(".gguf"))  # type: ignore[arg-type]
        else:
            convert(floats, layer, "llama", bits=int(form.removeprefix("int")))  # type: ignore[arg-type]
    copy = repeat_in_gguf if form.endswith(".gguf") else repeat_in_folder
    copy(layer, partial, config.num_hidden_layers)
    partial.rename(target)
    return target


def clean(folder: Path) -> None:
    """Removes what was only needed on the way."""
    for path in folder.glob("one_layer*"):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def write_one_layer(folder: Path, config: ModelConfig) -> None:
    """A Llama folder of a single layer, normal weights of deviation 0.02."""
    folder.mkdir()
    width, ffn = config.hidden_size, config.intermediate_size
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.bfloat16).normal_(0, 0.02, generator=generator)

    prefix = "model.layers.0."
    weights = {"model.embed_tokens.weight": draw(config.vocab_size, width)}
    weights |= {f"{prefix}self_attn.{name}_proj.weight": draw(width, width) for name in "qkvo"}
    weights |= {f"{prefix}mlp.{name}_proj.weight": draw(ffn, width) for name in ("gate", "up")}
    weights |= {f"{prefix}mlp.down_proj.weight": draw(width, ffn), "lm_head.weight": draw(config.vocab_size, width)}
    norms = (f"{prefix}input_layernorm", f"{prefix}post_attention_layernorm", "model.norm")
    weights |= {f"{name}.weight": torch.ones(width, dtype=torch.bfloat16) for name in norms}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    single = dataclasses.replace(config, num_hidden_layers=1)
    names = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "bos_token_id": 1, "eos_token_id": 2}
    (folder / "config.json").write_text(json.dumps(single.to_dict() | names))
    (folder / "tokenizer.model").write_bytes(build_vocabulary(config.vocab_size))


def repeat_in_folder(source: Path, target: Path, layers: int) -> None:
    """The folder with its first layer under the names of `layers`; a file for each, and one for the rest."""
    target.mkdir()
    for path in source.iterdir():
        if path.suffix != ".safetensors" and not path.name.endswith(".index.json"):
            shutil.copy(path, target)
    config = json.loads((source / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | {"num_hidden_layers": layers}))
    tensors: dict[str, torch.Tensor] = {}
    checksums: dict[str, int] = {}
    for path in source.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            checksums |= json.loads(file.metadata()["crc32"])
            tensors |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    files: list[dict[str, str]] = [{name: name for name in tensors if ".layers." not in name}]
    for layer in range(layers):
        names = [name for name in tensors if ".layers." in name]
        files.append({name.replace(".layers.0.", f".layers.{layer}."): name for name in names})
    weight_map = {}
    for index, names_of in enumerate(files):
        name = f"model-{index + 1:05}-of-{len(files):05}.safetensors"
        sums = json.dumps({new: checksums[old] for new, old in names_of.items()})
        part = {new: tensors[old] for new, old in names_of.items()}
        save_file(part, target / name, metadata={"format": "pt", "crc32": sums})
        weight_map |= dict.fromkeys(names_of, name)
    (target / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def repeat_in_gguf(source: Path, target: Path, layers: int) -> None:
    """The file with its first block under the names of `layers`."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, "llama")
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == gguf.Keys.General.ARCHITECTURE:
            continue
        kind = field.types[0]
        value: Any = layers if field.name == "llama.block_count" else field.contents()
        writer.add_key_value(field.name, value, kind, field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None)
    tensors = [(tensor.name, tensor) for tensor in reader.tensors if not tensor.name.startswith("blk.")]
    blocks = [tensor for tensor in reader.tensors if tensor.name.startswith("blk.")]
    tensors += [(t.name.replace("blk.0.", f"blk.{layer}."), t) for layer in range(layers) for t in blocks]
    for name, tensor in tensors:
        data = tensor.data
        writer.add_tensor_info(name, data.shape, data.dtype, data.nbytes, tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for _, tensor in tensors:
        writer.write_tensor_data(tensor.data)
    writer.close()


if __name__ == "__main__":
    sys.exit(main())
