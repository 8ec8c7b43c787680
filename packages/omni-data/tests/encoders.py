"""What tests send to worker processes, which import it by its name."""

import os
import signal

import numpy as np

from omni_data import Sample


class Lines:
    """Ten parts of documents that can only be read in order."""

    name, parts = "lines", 10

    def read(self, part, state, /):
        for i in range(state or 0, 300):
            yield [part, i, *range(i % 7)], i + 1


def with_patches(document):
    """A sample of at most 64 tokens with a 'patch' for each, of which the even ones are learnt."""
    tokens_N = np.array(document[:64], np.int32)
    return Sample(tokens_N, tokens_N % 2 == 0, {"patches": np.stack([tokens_N, tokens_N], 1).astype(np.float32)})


def refuse_odd(document):
    if document[0] % 2:
        raise ValueError(f"{document[0]} is odd.")
    return Sample(np.array(document, np.int32))


def kill_the_reader(document):
    os.kill(os.getpid(), signal.SIGKILL)


def fail_at_once(document):
    raise RuntimeError("not the data's fault")


def complain(document):
    raise ValueError("not a good document.")
