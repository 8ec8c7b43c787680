"""What an app imports before all that takes long: from then on Ctrl-C ends it with a word instead of a traceback.

A run that has begun has more to say of it, and says it itself.
"""

import sys
from types import TracebackType
from typing import Final

INTERRUPTED: Final = "interrupted"


def tell_interrupt(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print what Python would of an error that nobody caught, and of Ctrl-C a line: Python then ends as that does."""
    if issubclass(kind, KeyboardInterrupt):
        print(f"\n{INTERRUPTED}", file=sys.stderr, flush=True)
    else:
        sys.__excepthook__(kind, error, trace)


if sys.excepthook is sys.__excepthook__:
    sys.excepthook = tell_interrupt
