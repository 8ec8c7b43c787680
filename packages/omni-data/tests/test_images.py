"""Images to arrays: every format and way to keep colours, and everything that is refused by name."""

import subprocess
import sys
from io import BytesIO
from struct import pack
from zlib import compress, crc32

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from omni_data import read_image

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (5, 7, 3), np.uint8)
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")


def encoded(image, kind="PNG", **options):
    file = BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP"])
def test_formats_without_loss_give_the_colours_that_were_written(kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    assert np.array_equal(read_image(encoded(RGB, kind, **options)), RGB)


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_is_what_pillow_makes_of_it_in_colour_and_the_same_from_bytes_path_and_object(kind, tmp_path):
    data = encoded(RGB, kind)
    path = tmp_path / "an.image"
    path.write_bytes(data)
    sources = (data, path, str(path), {"bytes": data, "path": None}, {"bytes": None, "path": str(path)})
    expected = np.asarray(Image.open(BytesIO(data)).convert("RGB"))
    for source in sources:
        got = read_image(source)
        assert got.dtype == np.uint8 and got.flags["C_CONTIGUOUS"] and got.flags["WRITEABLE"]
        assert np.array_equal(got, expected)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_turned_as_its_exif_says(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {"quality": 95} if kind == "JPEG" else {}
    turned = {
        1: RGB, 2: RGB[:, ::-1], 3: RGB[::-1, ::-1], 4: RGB[::-1],
        5: RGB.transpose(1, 0, 2), 6: np.rot90(RGB, -1), 7: np.rot90(RGB, 2).transpose(1, 0, 2), 8: np.rot90(RGB, 1),
    }[orientation]  # fmt: skip
    got = read_image(encoded(RGB, kind, exif=exif, **options))
    if kind == "JPEG":
        turned = np.asarray(ImageOps.exif_transpose(Image.open(BytesIO(encoded(RGB, kind, exif=exif, **options)))))
    assert np.array_equal(got, turned)


def test_what_is_transparent_is_laid_over_white():
    alpha = np.array([[0, 128, 255]], np.uint8)
    colours = np.array([[[10, 20, 30]] * 3], np.uint8)
    rgba = np.dstack([colours, alpha])
    got = read_image(encoded(rgba))
    expected = colours * (alpha[..., None] / 255) + 255 * (1 - alpha[..., None] / 255)
    assert np.abs(got - expected).max() <= 0.5
    assert got[0, 0].tolist() == [255, 255, 255] and got[0, 2].tolist() == [10, 20, 30]
    grey = Image.fromarray(np.array([[[10, 0], [10, 255]]], np.uint8), "LA")
    assert read_image(encoded(grey)).tolist() == [[[255] * 3, [10] * 3]]


@pytest.mark.parametrize("transparency", [1, bytes([255, 0, 255])])
def test_a_palette_gives_its_colours_and_white_for_the_transparent_one(transparency):
    image = Image.new("P", (3, 1))
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    image.putdata([0, 1, 2])
    assert read_image(encoded(image)).tolist() == [[[10, 20, 30], [40, 50, 60], [70, 80, 90]]]
    clear = read_image(encoded(image, transparency=transparency)).tolist()
    assert clear == [[[10, 20, 30], [255, 255, 255], [70, 80, 90]]]


def test_colours_and_greys_that_are_named_transparent_are_white():
    assert read_image(encoded(np.uint8([[[1, 2, 3], [4, 5, 6]]]), transparency=(1, 2, 3))).tolist() == [
        [[255] * 3, [4, 5, 6]]
    ]
    assert read_image(encoded(np.uint8([[7, 8]]), transparency=8)).tolist() == [[[7] * 3, [255] * 3]]
    assert read_image(encoded(np.uint16([[0x0107, 0x0108]]), transparency=0x0108)).tolist() == [[[1] * 3, [255] * 3]]


def test_grey_of_16_bits_keeps_the_higher_8_as_colours_of_16_bits_do():
    grey = np.array([[0, 255, 256, 32_768, 65_535]], np.uint16)
    expected = np.repeat((grey >> 8)[..., None], 3, 2)
    assert np.array_equal(read_image(encoded(grey)), expected)
    assert np.array_equal(read_image(encoded(grey, "TIFF")), expected)
    colour = png_of_16_bits(np.repeat(grey[..., None], 3, 2))
    assert np.array_equal(read_image(colour), expected)


def png_of_16_bits(rgb_HW3):
    """Pillow writes none of these."""

    def chunk(kind, content):
        return pack(">I", len(content)) + kind + content + pack(">I", crc32(kind + content))

    height, width, _ = rgb_HW3.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in rgb_HW3)
    header = pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("mode", ["1", "L", "CMYK", "YCbCr"])
def test_other_modes_are_what_pillow_makes_of_them(mode):
    image = Image.fromarray(RGB).convert(mode)
    data = encoded(image, "TIFF")
    assert np.array_equal(read_image(data), np.asarray(Image.open(BytesIO(data)).convert("RGB")))


def test_values_of_32_bits_are_refused():
    for values in (np.zeros((2, 2), np.float32), np.zeros((2, 2), np.int32)):
        with pytest.raises(ValueError, match="do not say which of them is white"):
            read_image(encoded(values, "TIFF"))


def test_the_first_frame_of_several_is_read():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    for kind in ("GIF", "WEBP", "TIFF", "PNG"):
        data = encoded(
            frames[0], kind, save_all=True, append_images=frames[1:], **({"lossless": True} if kind == "WEBP" else {})
        )
        assert (read_image(data) == [255, 0, 0]).all(), kind


def test_size_is_refused_before_there_is_memory_for_it(tmp_path):
    code = """
import resource, sys
import PIL.Image, PIL.ImageOps
from omni_data import read_image
PIL.Image.init()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sys.argv[1:]:
    try: read_image(path, most_pixels=10_000)
    except ValueError as error: assert "most_pixels=10000" in str(error), error
    else: raise AssertionError(path)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    for kind, side in (("PNG", 20_000), ("PNG", 8_000), ("WEBP", 8_000), ("JPEG", 8_000), ("GIF", 8_000)):
        Image.new("L", (side, side)).save(tmp_path / f"{side}.{kind}", kind)
    command = [sys.executable, "-W", "ignore", "-c", code, *map(str, tmp_path.iterdir())]
    ran = subprocess.run(command, check=True, capture_output=True, text=True)
    assert int(ran.stdout) < 20_000, "kilobytes"


def test_an_image_of_the_limit_is_read_and_one_more_is_not():
    assert read_image(encoded(RGB), most_pixels=35).shape == (5, 7, 3)
    with pytest.raises(ValueError, match=r"bytes: 7 x 5 pixels are more than most_pixels=34: scale the image down"):
        read_image(encoded(RGB), most_pixels=34)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_truncated_image_is_an_error_with_its_name(kind):
    noise = RNG.integers(0, 256, (40, 40, 3), np.uint8)
    data = encoded(noise, kind)
    for size in (len(data) // 2, len(data) * 9 // 10, 10, 0):
        with pytest.raises(ValueError, match=r"^cut\.img: "):
            read_image({"bytes": data[:size], "path": "cut.img"})


@given(st.sampled_from(FORMATS), st.data())
@pytest.mark.filterwarnings("ignore")
def test_damaged_bytes_are_an_image_or_an_error_with_the_name(kind, data):
    good = bytearray(encoded(RGB, kind))
    for _ in range(data.draw(st.integers(1, 4))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    source = {"bytes": bytes(good), "path": "bad.img"}
    try:
        got = read_image(source, most_pixels=10_000)
    except ValueError as error:
        assert str(error).startswith("bad.img: ")
    else:
        assert got.ndim == 3 and got.shape[2] == 3 and np.array_equal(got, read_image(source))


def test_other_formats_and_other_things_are_refused_by_name(tmp_path):
    svg = b"<svg xmlns='http://www.w3.org/2000/svg' width='1' height='1'/>"
    with pytest.raises(ValueError, match=r"a.svg: is no image of a format that is read: PNG, JPEG"):
        read_image({"bytes": svg, "path": "a.svg"})
    with pytest.raises(ValueError, match="is no image of a format that is read"):
        read_image(encoded(RGB, "PPM"))
    with pytest.raises(ValueError, match=r"nowhere.png: no such file"):
        read_image(tmp_path / "nowhere.png")
    with pytest.raises(ValueError, match=r"None \(NoneType\) holds no media: give bytes, a path"):
        read_image(None)
    with pytest.raises(ValueError, match=r"\{'bytes': None, 'path': None\} \(dict\) holds no media"):
        read_image({"bytes": None, "path": None})


@pytest.mark.parametrize("module", ["PIL", "av", "soundfile"])
def test_a_missing_library_names_the_extra(module):
    code = f"""
import sys
sys.modules["{module}"] = None
from omni_data import read_audio, read_image, read_video
read = {{"PIL": lambda: read_image(b""), "av": lambda: read_video(b"", fps=1, most_frames=1),
        "soundfile": lambda: read_audio(b"", rate=8000, most_seconds=1)}}["{module}"]
try: read()
except ValueError as error: print(error)
"""
    ran = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "pip install 'omni-data[media]'" in ran.stdout
