"""Laws of pictures as codes: what there are codes for is kept exactly, and all else is the nearest."""

from pathlib import Path

import numpy as np
import pytest
import torch

from omni_models import fit_tokenizer, read_vq, save_vq
from omni_models.vq import cut_patches


def pictures(count: int, colours: int, seed: int = 0) -> torch.Tensor:
    """Of 8 x 12 pixels, whose patches of 4 are of one colour each."""
    random = np.random.default_rng(seed)
    palette = random.integers(0, 256, (colours, 3), np.uint8)
    chosen = palette[random.integers(0, colours, (count, 2, 3))]
    return torch.from_numpy(chosen.repeat(4, axis=1).repeat(4, axis=2))


def test_pictures_of_as_many_patches_as_codes_come_back_exactly() -> None:
    given = pictures(20, 6)
    tokenizer = fit_tokenizer(given, codes=8, patch=4)
    codes_nF = tokenizer.encode(given)
    assert codes_nF.shape == (20, 6) and codes_nF.dtype == torch.int64 and codes_nF.max() < 6
    assert torch.equal(tokenizer.decode(codes_nF, width=12), given)
    assert torch.equal(fit_tokenizer(given, 8, 4).codebook_KD, tokenizer.codebook_KD)


def test_patches_are_cut_row_by_row() -> None:
    given = torch.arange(8 * 12 * 3, dtype=torch.uint8).view(1, 8, 12, 3)
    patches = cut_patches(given, 4)
    assert patches.shape == (1, 6, 48)
    assert torch.equal((patches[0, 4] * 255).round().to(torch.uint8).view(4, 4, 3), given[0, 4:, 4:8])


def test_more_patches_than_codes_are_nearest_to_means() -> None:
    given = pictures(60, 40, seed=1)
    errors = []
    for codes in (4, 12, 40):
        tokenizer = fit_tokenizer(given, codes, patch=4)
        found = tokenizer.decode(tokenizer.encode(given), width=12)
        errors.append((found.float() - given.float()).square().mean().item())
    assert errors[0] > errors[1] > errors[2] == 0
    tokenizer, patches = fit_tokenizer(given, 4, patch=4, steps=200), cut_patches(given, 4).flatten(0, 1)
    codes = tokenizer.encode(given).flatten()
    for code in range(4):
        torch.testing.assert_close(patches[codes == code].mean(0), tokenizer.codebook_KD[code], atol=1e-5, rtol=0)


def test_pictures_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="pictures of 8 x 12 pixels do not divide into patches of 5"):
        fit_tokenizer(pictures(1, 2), 2, patch=5)


def test_what_is_saved_is_read_and_equal_tokenizers_have_equal_files(tmp_path: Path) -> None:
    tokenizer = fit_tokenizer(pictures(20, 6), codes=8, patch=4)
    path, again = (save_vq(tokenizer, tmp_path / name) for name in ("a.npz", "b.npz"))
    assert path.read_bytes() == again.read_bytes()
    found = read_vq(path)
    assert torch.equal(found.codebook_KD, tokenizer.codebook_KD) and found.patch == 4


def test_files_that_hold_no_codes_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", weights=np.zeros(3))
    np.savez(tmp_path / "odd.npz", codebook_KD=np.zeros((8, 47), np.float32), patch=np.array(4))
    (tmp_path / "text.npz").write_text("no zip")
    for name, told in {
        "other": "other.npz holds no codes of patches, as save_vq writes them",
        "text": "text.npz holds no codes of patches",
        "none": "none.npz holds no codes of patches",
        "odd": r"codes of shape \[8, 47\] are no patches of 4 x 4",
    }.items():
        with pytest.raises(ValueError, match=told):
            read_vq(tmp_path / f"{name}.npz")
