"""Pictures as codes: each patch is the nearest of K, found by k-means (Lloyd, 1982). The simplest tokenizer of images
there is; pictures of few colours and shapes it keeps exactly.

Dimensions: n pictures of H x W pixels, P pixels a side of a patch, F = (H / P) * (W / P) patches of one, K codes,
D = 3 * P * P numbers of a patch, M patches.
"""

import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn


class VQTokenizer(nn.Module):
    """Pictures to codes and back."""

    codebook_KD: Tensor

    def __init__(self, codes: int, patch: int) -> None:
        """Of `codes` patches of `patch` x `patch` pixels, all of them black; see `fit_tokenizer`."""
        super().__init__()
        self.patch = patch
        self.register_buffer("codebook_KD", torch.zeros(codes, 3 * patch * patch))

    def encode(self, pictures_nHWC: Tensor) -> Tensor:
        """(n, F) int64: the nearest code of each patch, row by row, of pictures in uint8."""
        patches_nFD = cut_patches(pictures_nHWC, self.patch)
        return torch.cdist(patches_nFD, self.codebook_KD.expand(len(patches_nFD), -1, -1)).argmin(dim=-1)

    def decode(self, codes_nF: Tensor, width: int) -> Tensor:
        """(n, H, W, 3) uint8, of codes of pictures that are `width` pixels wide."""
        P, columns = self.patch, width // self.patch
        patches = self.codebook_KD[codes_nF].unflatten(2, (P, P, 3)).unflatten(1, (-1, columns))
        pixels = patches.transpose(2, 3).flatten(3, 4).flatten(1, 2)
        return (pixels * 255).round().clamp(0, 255).to(torch.uint8)


def cut_patches(pictures_nHWC: Tensor, patch: int) -> Tensor:
    """(n, F, D) fp32 between 0 and 1, of pictures in uint8. Pure.

    Raises:
        ValueError: if the pictures do not divide into patches.
    """
    _, H, W, _ = pictures_nHWC.shape
    if H % patch or W % patch:
        raise ValueError(f"pictures of {H} x {W} pixels do not divide into patches of {patch}: scale or pad them.")
    cut = pictures_nHWC.unflatten(2, (-1, patch)).unflatten(1, (-1, patch)).transpose(2, 3)
    return cut.flatten(1, 2).flatten(2).float() / 255


def fit_tokenizer(pictures_nHWC: Tensor, codes: int, patch: int, *, steps: int = 20) -> VQTokenizer:
    """A tokenizer whose codes are the means of the patches nearest to them. Pure, and without chance.

    It begins with the patch that there is most of, and then with whichever is farthest from those chosen (Gonzalez,
    1985); so where there are no more different patches than codes, each has its own, exactly.

    Args:
        pictures_nHWC: uint8.
        codes: K.
        patch: P.
        steps: of k-means, at most.

    Raises:
        ValueError: if the pictures do not divide into patches.
    """
    found_MD, counts_M = cut_patches(pictures_nHWC, patch).flatten(0, 1).unique(dim=0, return_counts=True)
    chosen = [int(counts_M.argmax())]
    far_M = (found_MD - found_MD[chosen[0]]).norm(dim=1)
    while len(chosen) < min(codes, len(found_MD)):
        chosen.append(int(far_M.argmax()))
        far_M = torch.minimum(far_M, (found_MD - found_MD[chosen[-1]]).norm(dim=1))
    codebook_KD = found_MD[chosen]
    weight_M1 = counts_M[:, None].float()
    for _ in range(steps if len(found_MD) > codes else 0):
        nearest_M = torch.cdist(found_MD, codebook_KD).argmin(dim=1)
        sums_KD = torch.zeros_like(codebook_KD).index_add_(0, nearest_M, found_MD * weight_M1)
        sizes_K1 = torch.zeros_like(codebook_KD[:, :1]).index_add_(0, nearest_M, weight_M1)
        moved_KD = torch.where(sizes_K1 > 0, sums_KD / sizes_K1.clamp(min=1), codebook_KD)
        if torch.equal(moved_KD, codebook_KD):
            break
        codebook_KD = moved_KD
    tokenizer = VQTokenizer(codes, patch)
    tokenizer.codebook_KD[: len(codebook_KD)] = codebook_KD
    # Codes that are left over stand for what the first does, which comes first where both are as near.
    tokenizer.codebook_KD[len(codebook_KD) :] = codebook_KD[0]
    return tokenizer


def save_vq(tokenizer: VQTokenizer, path: Path) -> Path:
    """The file, an .npz of numpy, which `read_vq` reads. Effect: writes it; equal tokenizers give equal files."""
    with path.open("wb") as file:
        np.savez(file, codebook_KD=tokenizer.codebook_KD.numpy(), patch=np.array(tokenizer.patch))
    return path


def read_vq(path: Path) -> VQTokenizer:
    """The tokenizer in a file. Effect: reads it; nothing in it is run.

    Raises:
        ValueError: if it is none that `save_vq` wrote.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            codebook_KD, patch = arrays["codebook_KD"], int(arrays["patch"])
    except (OSError, KeyError, ValueError, TypeError, zipfile.BadZipFile) as problem:
        raise ValueError(f"{path} holds no codes of patches, as save_vq writes them: {problem}") from problem
    if codebook_KD.ndim != 2 or not len(codebook_KD) or codebook_KD.shape[1] != 3 * patch * patch:
        raise ValueError(
            f"{path}: codes of shape {list(codebook_KD.shape)} are no patches of {patch} x {patch} pixels."
        )
    tokenizer = VQTokenizer(len(codebook_KD), patch)
    tokenizer.codebook_KD.copy_(torch.from_numpy(codebook_KD))
    return tokenizer
