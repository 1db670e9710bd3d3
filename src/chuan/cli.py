"""The command line: verbs to functions, nothing else.

Imports are inside the verbs, so that `chuan --help` starts without torch.
"""

from __future__ import annotations

import importlib.util
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chuan.errors import ChuanError

if TYPE_CHECKING:
    from chuan.inference.language_model import LanguageModel
    from chuan.inference.sampling import SamplingOptions

app = typer.Typer(
    name="chuan",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Open any Baichuan or Llama-family model and chat with it. Nothing from a model's folder is ever executed.",
)
corpus_app = typer.Typer(no_args_is_help=True, help="From raw text to shards of tokens.")
app.add_typer(corpus_app, name="corpus")
tokenizer_app = typer.Typer(no_args_is_help=True, help="From raw text to a vocabulary.")
app.add_typer(tokenizer_app, name="tokenizer")

Model = Annotated[str, typer.Argument(help="A name from `chuan models`, a hub id, a folder, or a .gguf file.")]
Bits = Annotated[int | None, typer.Option(help="16, 8 or 4: the bits of a weight. (default: what the files have)")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps ...")]
Dtype = Annotated[
    str,
    typer.Option(
        help="auto, bfloat16, float16, float32. auto is what the hardware computes fast; with 8 or 4 bits on a CPU "
        "that is integer arithmetic, and a named type means float activations."
    ),
]
Temperature = Annotated[float | None, typer.Option(help="0 is greedy. (default: the model's own, as for all below)")]
TopK = Annotated[int | None, typer.Option(help="Choose among the K likeliest tokens; 0 is off.")]
TopP = Annotated[float | None, typer.Option(help="Choose among the likeliest tokens that make up this probability.")]
MinP = Annotated[float | None, typer.Option(help="Drop tokens less likely than this share of the likeliest.")]
Penalty = Annotated[float | None, typer.Option("--repetition-penalty", help="Above 1, repeat less.")]
Seed = Annotated[int | None, typer.Option(help="The same seed gives the same answer.")]
MaxNewTokens = Annotated[int | None, typer.Option(help="How long an answer may be.")]
Stop = Annotated[list[str] | None, typer.Option(help="A text that ends the answer; may be given several times.")]


@app.command()
def chat(
    model: Model = "smollm2-135m",
    message: Annotated[
        str | None, typer.Option("--message", "-m", help="Answer this and stop; - reads it from stdin.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="What the assistant should know before the first turn.")] = None,
    bits: Bits = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    repetition_penalty: Penalty = None,
    seed: Seed = None,
    max_new_tokens: MaxNewTokens = None,
    stop: Stop = None,
) -> None:
    """Chat in the terminal, or get one answer with -m."""
    from chuan.terminal.chat import run_chat, run_once
    from chuan.terminal.input import read_all_stdin

    if message == "-":
        message = read_all_stdin()
    given = locals()
    language_model = _load(model, bits, device, dtype)
    options = _sampling_options(language_model, given)
    if message is not None:
        raise typer.Exit(run_once(language_model, message, options, system))
    raise typer.Exit(run_chat(language_model, options, system))


@app.command()
def generate(
    model: Model,
    prompt: Annotated[str, typer.Argument(help="The text to continue; - reads it from stdin.")],
    bits: Bits = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    repetition_penalty: Penalty = None,
    seed: Seed = None,
    max_new_tokens: MaxNewTokens = None,
    stop: Stop = None,
) -> None:
    """Continue a text: what base models do."""
    from chuan.terminal.generate import run_generate
    from chuan.terminal.input import read_all_stdin

    if prompt == "-":
        prompt = read_all_stdin()
    given = locals()
    language_model = _load(model, bits, device, dtype)
    raise typer.Exit(run_generate(language_model, prompt, _sampling_options(language_model, given)))


@app.command()
def models() -> None:
    """List the models that have a name here."""
    from chuan.terminal.tables import print_models

    print_models()


@app.command()
def info(model: Model) -> None:
    """Say what a model is and what it needs in memory, before loading it."""
    from chuan.terminal.tables import print_info

    print_info(model)


@app.command()
def convert(
    source: Annotated[str, typer.Argument(help="A name from `chuan models`, a hub id, a folder, a .gguf, an adapter.")],
    target: Annotated[str, typer.Argument(help="What to write: a folder, or a .gguf file. It must not exist.")],
    to: Annotated[
        str | None, typer.Option(help="llama, baichuan or gguf. (default: gguf for a target in .gguf, else llama)")
    ] = None,
    bits: Annotated[int | None, typer.Option(help="16, 8 or 4. (default: what the source has)")] = None,
    gguf_type: Annotated[
        str | None,
        typer.Option("--type", help="Of a GGUF: f16, bf16, q8_0, q4_0, q4_1. (default: 16 bits, the source's kind)"),
    ] = None,
    calibrate: Annotated[
        str | None, typer.Option(help="With --bits 4: a text file of the kind the model is for, to fit the weights to.")
    ] = None,
) -> None:
    """Write a model as the files that another engine opens; checked by logits before it gets its name.

    A GGUF's own blocks have no name in a folder: without --bits a quantized GGUF becomes a 16-bit one.
    """
    from chuan.terminal.convert import run_convert

    raise typer.Exit(run_convert(source, target, to, bits, gguf_type, calibrate))


@app.command()
def merge(
    adapter: Annotated[str, typer.Argument(help="The folder of a LoRA adapter, or its hub id.")],
    target: Annotated[str, typer.Argument(help="The folder to write. It must not exist.")],
    base: Annotated[str | None, typer.Option(help="Its model. (default: the one that the adapter names)")] = None,
    bits: Annotated[
        int | None, typer.Option(help="Those of the base that the adapter saw: 16, 8 or 4. (default: as it says)")
    ] = None,
    unmerge: Annotated[bool, typer.Option("--unmerge", help="Take the adapter out of a merged --base.")] = False,
) -> None:
    """Write a LoRA adapter and its model as one model; checked by logits before it gets its name."""
    from chuan.terminal.convert import run_merge

    raise typer.Exit(run_merge(adapter, target, base, bits, unmerge))


@app.command()
def bench(
    model: Model = "smollm2-135m",
    bits: Bits = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    prompt_tokens: Annotated[int, typer.Option(help="How long the prompt is that is read.")] = 256,
    new_tokens: Annotated[int, typer.Option(help="How many tokens are decoded.")] = 64,
    sequences: Annotated[str, typer.Option(help="How many sequences decode together; several with commas.")] = "1,8",
    json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Measure a model on this machine, beside what the machine's memory and arithmetic can do."""
    from chuan.terminal.bench import run_bench_command

    raise typer.Exit(run_bench_command(model, bits, device, dtype, prompt_tokens, new_tokens, sequences, json))


@app.command()
def evaluate(
    model: Annotated[
        str,
        typer.Argument(help="As for `chuan chat`, or hf:NAME (through transformers), openai:NAME, anthropic:NAME."),
    ],
    benchmark: Annotated[
        str | None, typer.Option(help="ceval, mmlu, agieval, agieval-v1, gaokao; several with commas.")
    ] = None,
    data: Annotated[str | None, typer.Option(help="The folder of their files. (default: mmlu, ceval: the hub)")] = None,
    text: Annotated[
        str | None, typer.Option(help="Instead of questions, a text file: perplexity and bits per byte.")
    ] = None,
    context: Annotated[int | None, typer.Option(help="With --text: tokens of a window. (default: the context)")] = None,
    stride: Annotated[
        int | None, typer.Option(help="With --text: from window to window. (default: half of one)")
    ] = None,
    longest: Annotated[
        int | None,
        typer.Option(help="With --text: by position in windows of so many tokens, also beyond the trained context."),
    ] = None,
    protocol: Annotated[str, typer.Option(help="Whose prompts and rules: baichuan, official, harness.")] = "baichuan",
    mode: Annotated[str, typer.Option(help="base continues a text; chat answers a conversation.")] = "base",
    split: Annotated[str | None, typer.Option(help="val or test. (default: test)")] = None,
    shots: Annotated[int, typer.Option(help="Demonstrations before each question.")] = 5,
    shuffle_seed: Annotated[
        int | None, typer.Option(help="Draw the demonstrations anew for every question. (default: the first ones)")
    ] = None,
    subjects: Annotated[str | None, typer.Option(help="Only these; several with commas.")] = None,
    bits: Annotated[
        str | None, typer.Option(help="16, 8, 4, or several with commas, which are compared. (default: as the files)")
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    output: Annotated[
        str, typer.Option(help="Where the folders of the runs go; a run that was ended goes on.")
    ] = "runs",
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="With hf: run the code that is in the model's folder.")
    ] = False,
    base_url: Annotated[
        str | None, typer.Option(help="With openai: or anthropic: another server. (default: the provider's own)")
    ] = None,
    concurrency: Annotated[int, typer.Option(help="With openai: or anthropic: questions asked at a time.")] = 4,
    prices: Annotated[
        str | None, typer.Option(help="Of a million tokens of prompts and of replies, as 2.5,10: shows the cost.")
    ] = None,
) -> None:
    """Ask a model the questions of benchmarks: accuracy, a report, and every answer, in a folder a run."""
    _require("openai", "evaluate")
    if text is not None:
        from chuan.evaluation.text_verb import run_text

        if benchmark is not None or data is not None:
            raise ChuanError("give either --text or --benchmark with --data")
        raise typer.Exit(run_text(model, text, context, stride, longest, bits, device, dtype, output))
    if benchmark is None:
        raise ChuanError("say what to ask: --benchmark NAME, or --text FILE")
    from chuan.evaluation.evaluate_verb import run_evaluate

    given = (protocol, split, shots, shuffle_seed, subjects, bits, device, dtype, output, trust_remote_code, mode)
    raise typer.Exit(run_evaluate(model, benchmark, data, *given, base_url, concurrency, prices))


@app.command()
def leaderboard(
    runs: Annotated[str | None, typer.Option(help="A folder with runs of `chuan evaluate`, shown beside them.")] = None,
    benchmark: Annotated[str | None, typer.Option(help="One table: C-Eval, Gaokao, AGIEval or MMLU.")] = None,
    sort: Annotated[str, typer.Option(help="A column, or size, or model.")] = "Average",
    columns: Annotated[str | None, typer.Option(help="Only these; several with commas.")] = None,
    min_size: Annotated[float | None, typer.Option(help="In units of 10^9 parameters.")] = None,
    max_size: Annotated[float | None, typer.Option(help="In units of 10^9 parameters.")] = None,
    form: Annotated[str, typer.Option("--format", help="terminal, markdown, html or json.")] = "terminal",
    compare: Annotated[
        tuple[str, str] | None, typer.Option(help="Two folders of runs: do they differ, question by question?")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the resampling of --compare.")] = 0,
) -> None:
    """Show the published tables beside your own runs; what cannot be compared is not ranked."""
    from chuan.evaluation.leaderboard_verb import run_compare, run_leaderboard

    if compare is not None:
        raise typer.Exit(run_compare(*compare, seed))
    raise typer.Exit(run_leaderboard(runs, benchmark, sort, columns, min_size, max_size, form))


@corpus_app.command("build")
def corpus_build(
    recipe: Annotated[str, typer.Argument(help="A recipe in TOML; recipes/corpus-mini.toml is one.")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="a.b=c replaces a value of the recipe; may be repeated.")
    ] = None,
) -> None:
    """Read, clean, de-duplicate and mix text, and cut it into shards of tokens. A build that was ended goes on."""
    _require("datatrove", "corpus")
    from chuan.terminal.corpus import run_corpus_build

    raise typer.Exit(run_corpus_build(recipe, overrides or []))


@corpus_app.command("mix")
def corpus_mix(
    recipe: Annotated[str, typer.Argument(help="A recipe in TOML; recipes/mixture-mini.toml is one.")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="a.b=c replaces a value of the recipe; may be repeated.")
    ] = None,
) -> None:
    """Find how often each source should be taken, by training many tiny models. A search that was ended goes on."""
    _require("datatrove", "corpus")
    from chuan.training.mixture import run_corpus_mix

    raise typer.Exit(run_corpus_mix(recipe, overrides or []))


@tokenizer_app.command("train")
def tokenizer_train(
    recipe: Annotated[str, typer.Argument(help="A recipe in TOML; recipes/tokenizer-mini.toml is one.")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="a.b=c replaces a value of the recipe; may be repeated.")
    ] = None,
) -> None:
    """Learn a vocabulary from text, and show how it compares with others on text that was set aside."""
    _require("datatrove", "corpus")
    from chuan.terminal.tokenizer import run_tokenizer_train

    raise typer.Exit(run_tokenizer_train(recipe, overrides or []))


@app.command()
def pretrain(
    recipe: Annotated[str, typer.Argument(help="A recipe in TOML; recipes/pretrain-mini.toml is one.")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="a.b=c replaces a value of the recipe; may be repeated.")
    ] = None,
) -> None:
    """Train a new model on shards of tokens. A run that was ended goes on; `torchrun` spreads it over many ranks."""
    _require("tensorboard", "train")
    from chuan.training.pretrain import run_pretrain

    raise typer.Exit(run_pretrain(recipe, overrides or []))


@app.command()
def finetune(
    recipe: Annotated[str, typer.Argument(help="A recipe in TOML; recipes/sft.toml and recipes/lora.toml are two.")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="a.b=c replaces a value of the recipe; may be repeated.")
    ] = None,
    show: Annotated[
        int, typer.Option(help="Instead of training, show so many conversations and what is learned of them.")
    ] = 0,
) -> None:
    """Teach a model conversations: all of it, or a LoRA adapter beside it. A run that was ended goes on."""
    _require("tensorboard", "train")
    from chuan.training.finetune import run_finetune

    raise typer.Exit(run_finetune(recipe, overrides or [], show))


@app.command()
def plan(
    recipe: Annotated[str, typer.Argument(help="A recipe of `chuan pretrain`.")],
    gpus: Annotated[int, typer.Option(help="How many there are.")],
    gpu: Annotated[str, typer.Option(help="a100-80gb, a800-80gb, h100-sxm, h800 or h200.")],
    tokens: Annotated[float | None, typer.Option(help="To train on, as 1.2e12. (default: the recipe's)")] = None,
    price: Annotated[float | None, typer.Option(help="Of an hour of one GPU; without it no cost is shown.")] = None,
    mfu: Annotated[
        float | None, typer.Option(help="Share of the peak while a GPU computes. (default: 0.5, after published runs)")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="a.b=c replaces a value of the recipe; may be repeated.")
    ] = None,
) -> None:
    """Say what a pre-training run needs before it is run: memory by part, time, cost, and the best use of the GPUs."""
    from chuan.training.plan_verb import run_plan

    raise typer.Exit(run_plan(recipe, overrides or [], gpus, gpu, tokens, price, mfu, json))


def main() -> None:
    """The entry point: what the user can put right is one line on stderr, without a traceback."""
    try:
        app()
    except ChuanError as error:
        print(f"chuan: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # The reader has gone (`chuan ... | head`); stdout's last flush at exit would complain again.
        sys.stderr.close()
        sys.exit(141)


def _require(module: str, extra: str) -> None:
    """Refuses a verb whose libraries were not installed."""
    if importlib.util.find_spec(module) is None:
        raise ChuanError(f"this needs more libraries; `pip install 'chuan[{extra}]'` brings them")


def _load(model: str, bits: int | None, device: str, dtype: str) -> LanguageModel:
    from chuan.inference.load import load
    from chuan.terminal.loading import loading_bar

    with loading_bar(model) as progress:
        return load(model, bits=bits, device=device, dtype=dtype, progress=progress)  # type: ignore[arg-type]


def _sampling_options(model: LanguageModel, given: dict[str, Any]) -> SamplingOptions:
    """The model's defaults, overridden by what was said on the command line."""
    names = ["temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed", "max_new_tokens", "stop"]
    return model.defaults.replace(**{name: given[name] for name in names if given[name] is not None})
