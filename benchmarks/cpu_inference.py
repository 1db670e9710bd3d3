"""8-bit and 4-bit answers on a plain CPU: Chuan beside llama.cpp and OpenVINO, the table of docs/benchmarks.md.

    python benchmarks/cpu_inference.py [--folder DIR] [--peer-python PYTHON] [--rows decode,load] [--rounds 5]
    python benchmarks/cpu_inference.py --quick             # SmolLM2 alone, one round, writes no document

Builds a 7B of random weights (24 GB of disk), installs the peers into an environment of its own, and measures a row of
the table after the other: in each of at least five rounds every side once, in turn, in a process that stays. What was
measured is kept in benchmarks/results, a file for each kind of processor and maker, so that rows can be measured one by
one; the table and the plot are made of that. Needs Linux and 24 GB of memory; one to two hours.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from cpu_report import write_report
from machine import describe_machine
from random_7b import CONFIG, INT4, INT8, Q4, Q8, build, clean
from sides import Side, SideError

from chuan.inference.bench import PeakMemory
from chuan.inference.convert import convert

HERE = Path(__file__).parent
CONTEXT = 128
OPENVINO_LAYERS = 8
Rounds = list[dict[str, Any]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where the models go, and stay (default: a temporary folder)")
    parser.add_argument("--peer-python", help="a Python that has llama-cpp-python, openvino and matplotlib")
    parser.add_argument("--rows", default=",".join(ROWS), help=f"which of {','.join(ROWS)}")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="--rows smollm2 --rounds 1, and only print")
    parser.add_argument("--report", action="store_true", help="measure nothing: table and plot from what is kept")
    arguments = parser.parse_args()
    rows = ["smollm2"] if arguments.quick else arguments.rows.split(",")
    if unknown := [row for row in rows if row not in ROWS]:
        parser.error(f"there is no row {unknown[0]}")
    print(describe_machine(), flush=True)
    with contextlib.ExitStack() as stack:
        folder = arguments.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        python = arguments.peer_python or install_peers(folder / "peers")
        bench = Bench(folder, python, 1 if arguments.quick else arguments.rounds, keep=not arguments.quick)
        if not arguments.report:
            for row in ROWS:
                if row in rows:
                    try:
                        bench.measure(row)
                    except SideError as error:  # the other rows can still be had
                        print(f"  {error}", flush=True)
                        bench.close()
            bench.close()
            clean(folder)
        if not arguments.quick:
            write_report(bench.results_path, python)
    return 0


def install_peers(folder: Path) -> str:
    """An environment with the peers, llama.cpp built for this very processor; its Python.

    Its own use of AMX ends in a segmentation fault (ggml-org/llama.cpp, issue 20824), so it is built without.
    """
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        flags = "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16" if torch.cpu.get_capabilities().get("amx_int8") else ""
        cmake = f"-DGGML_NATIVE=ON '-DCMAKE_C_FLAGS={flags}' '-DCMAKE_CXX_FLAGS={flags}'"
        install = ["env", f"CMAKE_ARGS={cmake}", python, "-m", "pip", "install", "--quiet"]
        native = ["--no-binary", "llama-cpp-python", "llama-cpp-python"]
        subprocess.run([*install, *native, "openvino", "numpy", "matplotlib"], check=True)
    return str(python)


def name_processor() -> str:
    """The kind of processor that the bars are given for, and its maker."""
    capabilities = torch.cpu.get_capabilities()
    names = {"amx": "amx_int8", "avx512_vnni": "avx512_vnni", "avx2": "avx2"}
    kind = next((kind for kind, name in names.items() if capabilities.get(name)), "other")
    vendor = re.search(r"^vendor_id\s*:\s*(\S+)", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    makers = {"GenuineIntel": "intel", "AuthenticAMD": "amd"}
    return f"{kind}-{makers.get(vendor[1], 'other') if vendor else 'other'}"


class Bench:
    """The sides, the models and what was measured so far."""

    def __init__(self, folder: Path, peer_python: str, rounds: int, keep: bool) -> None:
        self.folder, self.rounds = folder, rounds
        self.results_path = HERE / "results" / f"cpu_inference_{name_processor()}.json"
        self.ours = Side("chuan", sys.executable, "chuan_speed_side.py")
        self.llama = Side("llama.cpp", peer_python, "llama_cpp_speed_side.py")
        self.openvino = Side("openvino", peer_python, "openvino_side.py")
        self._keep = keep
        self._settings: dict[str, Any] = {}

    def measure(self, row: str) -> None:
        """Measures a row; prints every figure, and keeps them all."""
        print(f"\n{row}", flush=True)
        rounds = ROWS[row](self)
        versions = {side.name: side.ask("versions") for side in (self.ours, self.llama, self.openvino) if side.running}
        if row in LAST_OF_THEIR_MODEL:
            self.close()
        if self._keep:
            known = json.loads(self.results_path.read_text()) if self.results_path.exists() else {}
            date = datetime.date.today().isoformat()
            known[row] = {"rounds": rounds, "machine": describe_machine(), "date": date, "versions": versions}
            self.results_path.parent.mkdir(exist_ok=True)
            self.results_path.write_text(json.dumps(known, indent=1) + "\n")

    def close(self) -> None:
        """Ends every side's process, so that its memory is free for the next model."""
        for side in (self.ours, self.llama, self.openvino):
            side.close()

    def open(self, side: Side, **model: Any) -> None:
        """Has the side load the model, if it has not."""
        if side.model != model:
            answer = side.ask("load", **model)
            side.model = model
            print(f"  {side.name} loaded {model.get('path', 'its layers')} in {answer['seconds']:.1f} s", flush=True)
            side.ask("prefill", tokens=16)  # what is made at first use is made
            side.ask("decode", context=16, new_tokens=2)

    def open_7b(self, ours: str = INT8, theirs: str = Q8) -> None:
        """Both sides' 7B; another one's memory is given back first."""
        ours_path, theirs_path = str(build(self.folder, ours)), str(build(self.folder, theirs))
        if self.ours.model not in (None, {"path": ours_path}) or self.llama.model not in (None, {"path": theirs_path}):
            self.close()
        self.open(self.llama, path=theirs_path)
        self.open(self.ours, path=ours_path)

    def open_openvino(self, phase: str) -> None:
        """Some layers of a 7B, with the settings that OpenVINO is fastest with in this phase."""
        config = CONFIG.to_dict()
        if not self._settings:
            self._settings = self.openvino.ask("tune", config=config, tokens=256, context=CONTEXT, sequences=8)
            print(f"  openvino's settings: {json.dumps(self._settings)}", flush=True)
        self.open(self.openvino, config=config, layers=OPENVINO_LAYERS, **self._settings[phase])

    def take_turns(self, sides: list[Side], measure: str, **arguments: Any) -> Rounds:
        """Every side once in each round, in one order and then in the other."""
        return list(self._take_turns(sides, measure, arguments))

    def _take_turns(self, sides: list[Side], measure: str, arguments: dict[str, Any]) -> Iterator[dict[str, Any]]:
        for index in range(self.rounds):
            found: dict[str, Any] = {}
            for side in sides if index % 2 == 0 else sides[::-1]:
                found[side.name] = side.ask(measure, **arguments)
                self.show(side.name, found[side.name])
            yield found

    def show(self, name: str, answer: dict[str, Any]) -> None:
        """One measurement, on a line."""
        speed = f"{answer['tokens'] / answer['seconds']:8.2f} tok/s" if "tokens" in answer else ""
        disk = f", {answer['major_faults']} pages came from the disk" if answer["major_faults"] > 100 else ""
        print(f"  {name:10} {answer['seconds']:8.3f} s {speed}{disk}", flush=True)


def measure_decode(bench: Bench) -> Rounds:
    bench.open_7b()
    rounds = bench.take_turns([bench.ours, bench.llama], "decode", context=CONTEXT, new_tokens=16)
    rounds[0]["limits"] = bench.ours.ask("limits")
    return rounds


def measure_prefill(tokens: int) -> Callable[[Bench], Rounds]:
    def measure(bench: Bench) -> Rounds:
        bench.open_7b()
        bench.open_openvino("prefill")
        return bench.take_turns([bench.ours, bench.llama, bench.openvino], "prefill", tokens=tokens)

    return measure


def measure_together(bench: Bench) -> Rounds:
    bench.open_7b()
    bench.open_openvino("decode")
    sides = [bench.ours, bench.llama, bench.openvino]
    return bench.take_turns(sides, "decode", context=CONTEXT, new_tokens=8, sequences=8)


def measure_five(bench: Bench) -> Rounds:
    """Our own step of one row and of five."""
    bench.open_7b()
    rounds = []
    for _ in range(bench.rounds):
        found = {f"{rows} row(s)": bench.ours.ask("rows", context=CONTEXT, rows=rows) for rows in (1, 5)}
        for name, answer in found.items():
            bench.show(name, answer)
        rounds.append(found)
    return rounds


def measure_int4(bench: Bench) -> Rounds:
    bench.open_7b(INT4, Q4)
    return bench.take_turns([bench.ours, bench.llama], "decode", context=CONTEXT, new_tokens=16)


def measure_smollm2(bench: Bench) -> Rounds:
    bench.close()
    file = bench.folder / "smollm2-q8_0.gguf"
    if not file.exists():
        convert("smollm2-135m", file, "gguf", gguf_type="q8_0")
    bench.open(bench.llama, path=str(file))
    bench.open(bench.ours, path="smollm2-135m", bits=8)
    return bench.take_turns([bench.ours, bench.llama], "decode", context=CONTEXT, new_tokens=128)


def measure_load(bench: Bench) -> Rounds:
    """Each side alone, its files read just before."""
    bench.close()
    rounds = []
    paths = {bench.ours: build(bench.folder, INT8), bench.llama: build(bench.folder, Q8)}
    for index in range(bench.rounds):
        found = {}
        for side, path in list(paths.items())[:: 1 if index % 2 == 0 else -1]:
            side.ask("unload")
            read_into_cache(path)
            found[side.name] = side.ask("load", path=str(path))
            bench.show(side.name, found[side.name])
            side.ask("unload")
        rounds.append(found)
    return rounds


def measure_memory(bench: Bench) -> Rounds:
    """One full context in a new process; its anonymous memory from its start on."""
    bench.close()
    path = build(bench.folder, INT8)
    bench.ours.ask("versions")
    with PeakMemory(bench.ours.process_id) as memory:
        bench.ours.ask("load", path=str(path))
        # Three tokens more are answered.
        found = bench.ours.ask("memory", context=CONFIG.max_position_embeddings - 3)
    found |= {"peak": memory.peak, "files": sum(file.stat().st_size for file in path.glob("*.safetensors"))}
    print(f"  peak {found['peak'] / 1e9:.2f} GB, weights {found['weights'] / 1e9:.2f} GB", flush=True)
    return [{"chuan": found}]


def measure_curves(bench: Bench) -> Rounds:
    """Our own costs as the work grows, once each."""
    bench.close()
    bench.open(bench.ours, path=str(build(bench.folder, INT8)))
    longest = CONFIG.max_position_embeddings
    found: dict[str, Any] = {"memory": {}, "decode": {}, "prefill": {}}
    for sequences in (1, 2, 4, 8):  # first, because memory once taken may stay
        found["memory"][sequences] = bench.ours.ask("memory", context=256, sequences=sequences)["peak"]
    for tokens in (16, 64, 256, 512, 1024, 2048, longest - 16):
        answer = bench.ours.ask("decode", context=tokens, new_tokens=8)
        found["decode"][tokens] = answer["seconds"] / answer["tokens"]
        found["prefill"][tokens] = bench.ours.ask("prefill", tokens=tokens)["seconds"]
    print(f"  {json.dumps(found)}", flush=True)
    return [found]


def read_into_cache(path: Path) -> None:
    """Reads files through, so that the system has them in memory."""
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        with file.open("rb") as opened:
            while opened.read(1 << 24):
                pass


# In an order that loads each model once.
ROWS: dict[str, Callable[[Bench], Rounds]] = {
    "memory": measure_memory,
    "load": measure_load,
    "decode": measure_decode,
    "five": measure_five,
    "together": measure_together,
    "prefill-256": measure_prefill(256),
    "prefill-2048": measure_prefill(2048),
    "int4": measure_int4,
    "smollm2": measure_smollm2,
    "curves": measure_curves,
}
LAST_OF_THEIR_MODEL = ("memory", "load", "int4", "smollm2", "curves")


if __name__ == "__main__":
    sys.exit(main())
