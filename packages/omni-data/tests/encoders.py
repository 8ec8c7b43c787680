"""What tests send to worker processes, which import it by its name."""

import os
import signal
from io import BytesIO

import numpy as np
from PIL import Image

from omni_data import Documents, Sample, read_image


class Lines:
    """Ten parts of documents that can only be read in order."""

    name, parts = "lines", 10

    def read(self, part, state, /):
        for i in range(state or 0, 300):
            yield [part, i, *range(i % 7)], i + 1


class Torn:
    """One part of documents, the last of which cannot be read."""

    name, parts = "torn", 1

    def read(self, part, state, /):
        for i in range(state or 0, 1800):
            yield [i % 90] * 8, i + 1
        raise ValueError("torn: cannot be read from here on.")


def with_patches(document):
    """A sample of at most 64 tokens with a 'patch' for each, of which the even ones are learnt."""
    tokens_N = np.array(document[:64], np.int32)
    return Sample(tokens_N, tokens_N % 2 == 0, {"patches": np.stack([tokens_N, tokens_N], 1).astype(np.float32)})


def with_every_patch(document):
    """A sample with a 'patch' for each token."""
    tokens_N = np.array(document, np.int32)
    return Sample(tokens_N, None, {"patches": tokens_N[:, None].astype(np.float32)})


def picture(number):
    """The record of an image 6 pixels wide, of which every seventh was cut in the middle."""
    rows_HW3 = np.random.default_rng(number).integers(0, 256, (2 + number % 30, 6, 3), np.uint8)
    file = BytesIO()
    Image.fromarray(rows_HW3).save(file, ("PNG", "JPEG", "WEBP", "BMP", "TIFF")[number % 5])
    content = file.getvalue()
    return {"image": {"bytes": content[: len(content) // 2] if number % 7 == 6 else content, "path": f"{number}.img"}}


PICTURES = Documents("pictures", [picture(number) for number in range(83)])


def with_pixels(record):
    """A sample with a token for each row of pixels of an image, and these."""
    image_HW3 = read_image(record["image"], most_pixels=10_000)
    tokens_N = image_HW3.reshape(len(image_HW3), -1).astype(np.int32).sum(axis=1)
    return Sample(tokens_N, tokens_N % 2 == 0, {"pixels": image_HW3.reshape(len(image_HW3), -1)})


def refuse_odd(document):
    if document[0] % 2:
        raise ValueError(f"{document[0]} is odd.")
    return Sample(np.array(document, np.int32))


def some(document):
    """A sample, if there are tokens and they are not 3."""
    if document and document[0] == 3:
        raise ValueError("3 is odd.")
    return Sample(np.array(document, np.int32))


def kill_the_reader(document):
    os.kill(os.getpid(), signal.SIGKILL)


def fail_at_once(document):
    raise RuntimeError("not the data's fault")


def complain(document):
    raise ValueError("not a good document.")
