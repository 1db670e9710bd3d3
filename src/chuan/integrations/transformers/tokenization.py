"""Baichuan's tokenizer, as transformers wants one: equal to the sentencepiece library, to the id.

In: a folder with `tokenizer.model`. Out: what `AutoTokenizer` returns for it.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import sentencepiece
import wrapt
from transformers import AddedToken, PreTrainedTokenizer

from chuan.errors import ChuanError
from chuan.integrations.transformers.configuration import open_by
from chuan.tokenizer.spm import SentencePieceTokenizer


class BaichuanTokenizer(PreTrainedTokenizer):
    """`tokenizer.model` under transformers' names. `chuan` is the same vocabulary as a `chuan` tokenizer."""

    vocab_files_names = {"vocab_file": "tokenizer.model"}  # noqa: RUF012 (transformers' own attribute)
    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012

    def __init__(
        self, vocab_file: str | None = None, add_bos_token: bool = False, add_eos_token: bool = False, **kwargs: Any
    ) -> None:
        if vocab_file is None:
            raise ChuanError("a Baichuan tokenizer needs its tokenizer.model; fetch the folder again")
        # Loaded before the parent's __init__, which asks for the vocabulary.
        self._model_file = Path(vocab_file).read_bytes()
        self.chuan = SentencePieceTokenizer(self._model_file)
        self.sp_model = sentencepiece.SentencePieceProcessor(model_proto=self._model_file)
        self.add_bos_token, self.add_eos_token = add_bos_token, add_eos_token
        size = self.sp_model.get_piece_size()
        # `<pad>` beyond the vocabulary, as published folders have it, is ignored: its id crashes the model.
        added = kwargs.pop("added_tokens_decoder", None) or {}
        kwargs["added_tokens_decoder"] = {index: token for index, token in added.items() if index < size}
        unknown = self.sp_model.id_to_piece(max(self.sp_model.unk_id(), 0))
        defaults = {"bos_token": self.sp_model.bos_id(), "eos_token": self.sp_model.eos_id()}
        for role in ("bos_token", "eos_token", "unk_token", "pad_token"):
            token = kwargs.get(role)
            if token is None and defaults.get(role, -1) >= 0:
                token = self.sp_model.id_to_piece(defaults[role])
            known = token is not None and self._has(str(token))
            kwargs[role] = AddedToken(str(token) if known else unknown, special=True, normalized=False)
        # Text is never split at special tokens: sentencepiece alone decides, as it did when the model was trained.
        kwargs.setdefault("split_special_tokens", True)
        super().__init__(add_bos_token=add_bos_token, add_eos_token=add_eos_token, **kwargs)

    def _has(self, piece: str) -> bool:
        return self.sp_model.id_to_piece(self.sp_model.piece_to_id(piece)) == piece

    @property
    def vocab_size(self) -> int:
        return int(self.sp_model.get_piece_size())

    def get_vocab(self) -> dict[str, int]:
        return {self.sp_model.id_to_piece(index): index for index in range(self.vocab_size)}

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        return [self.sp_model.id_to_piece(index) for index in self.sp_model.encode(text)]

    def _convert_token_to_id(self, token: str) -> int:
        return int(self.sp_model.piece_to_id(token))

    def _convert_id_to_token(self, index: int) -> str:
        return str(self.sp_model.id_to_piece(index))

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Pieces to text; special tokens, where they were asked for, stand as their names."""
        out: list[str] = []
        run: list[int] = []
        for token in tokens:
            if token in self.all_special_tokens:
                out += [self.sp_model.decode(run), token]
                run = []
            else:
                run.append(self.sp_model.piece_to_id(token))
        return "".join([*out, self.sp_model.decode(run)])

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        bos = [self.bos_token_id] if self.add_bos_token else []
        eos = [self.eos_token_id] if self.add_eos_token else []
        second = [*bos, *token_ids_1, *eos] if token_ids_1 is not None else []
        return [*bos, *token_ids_0, *eos, *second]

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str]:
        """Writes `tokenizer.model`."""
        path = Path(save_directory) / f"{filename_prefix + '-' if filename_prefix else ''}tokenizer.model"
        path.write_bytes(self._model_file)
        return (str(path),)


def register(auto: ModuleType) -> None:
    """Called once `transformers.models.auto.tokenization_auto` is imported.

    Nothing is registered here: transformers imports the folder's `tokenization_*.py` whenever a tokenizer is registered
    under the folder's own configuration class.
    """
    ignored = ("use_fast", "trust_remote_code", "code_revision", "config", "tokenizer_type")
    wrapt.wrap_function_wrapper(
        auto, "AutoTokenizer.from_pretrained", open_by(BaichuanTokenizer.from_pretrained, ignored)
    )
