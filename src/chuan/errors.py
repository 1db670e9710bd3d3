"""The exceptions that are meant for the user.

Whatever a user can cause (a broken file, a prompt that does not fit, a wrong option) is raised as a `ChuanError`
whose message is one line: what is wrong, and what to do. The command line prints that line and nothing else.
"""


class ChuanError(Exception):
    """Something the user can put right; the message is one line that says how."""

    def __init__(self, message: str) -> None:
        super().__init__(escape_unprintable(message))


class PromptTooLongError(ChuanError):
    """A prompt that does not fit the context. `excess` is by how many tokens."""

    def __init__(self, message: str, excess: int) -> None:
        super().__init__(message)
        self.excess = excess


def escape_unprintable(text: str) -> str:
    """One line that a terminal shows as it is: names out of a broken file may hold newlines or control sequences."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def first_line(error: BaseException) -> str:
    """The first line of another library's message, to be quoted inside one of ours."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
