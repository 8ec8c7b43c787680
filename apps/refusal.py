"""What is wrong with a request, told at once: each check says what it finds, and the next one still runs."""

from collections.abc import Callable
from typing import Final, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
_REFUSED: Final = "this run cannot start:\n"


def attempt(problems: list[str], f: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
    """What `f` returns, or None once its complaint is noted in `problems`, so that the next check still runs."""
    try:
        return f(*args, **kwargs)
    except ValueError as problem:
        problems.append(str(problem))
        return None


def refuse(problems: list[str]) -> None:
    """Raise one `ValueError` with all `problems`; nothing if there are none."""
    if problems:
        told = [f"  - {problem}".replace("\n", "\n    ") for problem in dict.fromkeys(problems)]
        raise ValueError(_REFUSED + "\n".join(told))


def told_in(refusal: str) -> list[str]:
    """The problems that `refuse` told, or the one that `refusal` is. Pure.

    >>> told_in("this run cannot start:\\n  - one,\\n    of two lines\\n  - another")
    ['one,\\nof two lines', 'another']
    """
    if not refusal.startswith(_REFUSED):
        return [refusal]
    return [
        problem.replace("\n    ", "\n") for problem in refusal[len(_REFUSED) :].removeprefix("  - ").split("\n  - ")
    ]
