"""The chat loop: read a message, show the answer, remember both.

In: a model that streams answers, sampling options, a system prompt. Out: the exit code of the program. Knows no
weights and no tokens: a model is whatever has `ChatModel`'s two members.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING, Protocol

from chuan.errors import ChuanError, PromptTooLongError
from chuan.terminal.commands import interpret_line
from chuan.terminal.conversation import Conversation, build_conversation
from chuan.terminal.input import Reader, build_reader
from chuan.terminal.render import Renderer, build_renderer

if TYPE_CHECKING:  # the engine brings torch along, and the terminal can do without
    from chuan.inference.generation import Increment
    from chuan.inference.sampling import SamplingOptions


class ChatModel(Protocol):
    """What the chat asks of a model."""

    @property
    def name(self) -> str:
        """What the user calls it."""

    def stream_chat(
        self, messages: list[dict[str, str]], options: SamplingOptions | None = None
    ) -> Iterator[Increment]:
        """The answer to the messages, piece by piece."""


def run_chat(model: ChatModel, options: SamplingOptions | None = None, system: str | None = None) -> int:
    """Talks until the user leaves or the input ends; the exit code: 1 where something failed in a pipe, else 0."""

    def work(renderer: Renderer) -> int:
        conversation = build_conversation(system)
        reader = build_reader()
        if reader.interactive:
            renderer.note(f"{model.name} · /help lists the commands, Ctrl-D leaves")
        succeeded = converse(model, options, conversation, reader, renderer)
        return 0 if succeeded or reader.interactive else 1

    return _run(work)


def run_once(model: ChatModel, message: str, options: SamplingOptions | None = None, system: str | None = None) -> int:
    """One answer to one message; the exit code."""

    def work(renderer: Renderer) -> int:
        conversation = build_conversation(system).add_user(message)
        answer_last(model, options, conversation, renderer, stoppable=False)
        return 0

    return _run(work)


def converse(
    model: ChatModel, options: SamplingOptions | None, conversation: Conversation, reader: Reader, renderer: Renderer
) -> bool:
    """The loop itself; whether everything succeeded. Errors are shown and the chat goes on."""
    succeeded = True
    while True:
        try:
            line = reader.read()  # unreadable input ends the chat: what follows would be as unreadable
            if line is None:
                return succeeded
            try:
                step = interpret_line(conversation, line)
                if step.note:
                    renderer.note(step.note)
                if step.action == "exit":
                    return succeeded
                if step.action == "prompt":
                    conversation = step.conversation
                else:
                    answered = answer_last(model, options, step.conversation, renderer, stoppable=reader.interactive)
                    conversation = answered or conversation
            except ChuanError as error:
                renderer.error(str(error))
                succeeded = False
        except KeyboardInterrupt:
            if not reader.interactive:
                raise


def answer_last(
    model: ChatModel,
    options: SamplingOptions | None,
    conversation: Conversation,
    renderer: Renderer,
    *,
    stoppable: bool,
) -> Conversation | None:
    """Streams the answer to the last message; the conversation with it, or None where there is none.

    While the conversation does not fit the model, its oldest round is dropped. With `stoppable`, Ctrl-C ends the answer
    and what was said so far is kept; else it ends the program.
    """
    while True:
        try:
            text, stopped = _stream_answer(model, options, conversation, renderer, stoppable=stoppable)
        except PromptTooLongError:
            if conversation.rounds < 2:
                raise
            conversation = conversation.drop_oldest_round()
            renderer.note("The conversation no longer fits the model; its oldest round was dropped.")
            continue
        if text.strip():
            return conversation.add_assistant(text)
        if not stopped:
            renderer.note("The model had nothing to say; the message was taken back.")
        return None


def _stream_answer(
    model: ChatModel,
    options: SamplingOptions | None,
    conversation: Conversation,
    renderer: Renderer,
    *,
    stoppable: bool,
) -> tuple[str, bool]:
    """The whole text, and whether the user stopped it."""
    pieces: list[str] = []
    last: Increment | None = None
    shown: Increment | None = None  # the counts are told for answers and stopped answers, not for failed ones
    stopped = False
    started = time.monotonic()
    stream: Iterator[Increment] | None = None
    renderer.begin()
    try:
        stream = model.stream_chat(conversation.messages, options)
        for last in stream:
            pieces.append(last.text)
            renderer.write(last.text)
        shown = last
    except KeyboardInterrupt:
        if not stoppable:
            raise
        stopped, shown = True, last
    finally:
        if isinstance(stream, Generator):
            stream.close()
        renderer.end(shown, time.monotonic() - started)
    return "".join(pieces), stopped


def _run(work: Callable[[Renderer], int]) -> int:
    renderer = build_renderer()
    try:
        return work(renderer)
    except ChuanError as error:
        renderer.error(str(error))
        return 1
    except KeyboardInterrupt:
        return 130  # as a shell reports a program that SIGINT ended
    except BrokenPipeError:
        # Whoever read the answers has left. The interpreter flushes stdout once more on its way out: let it succeed.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # as a shell reports SIGPIPE
