"""Laws of patches embedded by a product: the same values and gradients, and only where a convolution is no more."""

import pytest
import torch
from senses import make_model
from test_kernels import torch_kernels
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from omni_models.kernels import apply_kernels, describe_kernels, use_kernels
from omni_models.patches import Patches, embed_patches, find_patches

BY_PATCH = {
    "two dims": nn.Conv2d(3, 5, 4, 4),
    "three dims": nn.Conv3d(3, 5, (2, 4, 4), (2, 4, 4), bias=False),
    "valid": nn.Conv2d(3, 5, 4, 4, padding="valid"),
}
NOT = {
    "steps are smaller": nn.Conv2d(3, 5, 4, 2),
    "padded": nn.Conv2d(3, 5, 4, 4, padding=1),
    "padded by name": nn.Conv2d(3, 5, 4, 1, padding="same"),
    "groups": nn.Conv2d(3, 6, 4, 4, groups=3),
    "dilated": nn.Conv2d(3, 5, 4, 4, dilation=2),
    "one dim": nn.Conv1d(3, 5, 4, 4),
    "no convolution": nn.Linear(3, 5),
}


class Convolutions(TorchDispatchMode):
    """Counts convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        self.count += op is torch.ops.aten.convolution.default
        return op(*args, **(kwargs or {}))


def run(forward, conv: nn.Module, x: Tensor) -> list[Tensor]:
    """What comes out, and all gradients."""
    x = x.detach().requires_grad_()
    out = forward(x)
    return [out.detach(), *torch.autograd.grad(out.square().sum(), [x, *conv.parameters()])]


@pytest.mark.parametrize("name", BY_PATCH)
@pytest.mark.parametrize("times", [1, 3])
def test_a_convolution_over_patches_is_a_product_and_over_images_its_own(name: str, times: int) -> None:
    conv = BY_PATCH[name]
    patches = find_patches(conv)
    assert patches is not None
    x = torch.randn(7, 3, *(times * size for size in patches.size), generator=torch.Generator().manual_seed(0))
    embed = embed_patches(patches, type(conv).forward)
    with Convolutions() as convolutions:
        got = run(lambda x: embed(conv, x), conv, x)
    assert convolutions.count == (times > 1)
    for have, want in zip(got, run(conv, conv, x), strict=True):
        torch.testing.assert_close(have, want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", NOT)
def test_other_convolutions_are_not_replaced(name: str) -> None:
    assert find_patches(NOT[name]) is None


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "glm4v"])
def test_towers_that_take_patches_one_by_one_do_without_convolutions(family: str) -> None:
    model = make_model(family)
    tower = next(module for name, module in model.named_modules() if name.endswith("visual"))
    patches_PX, grids = torch.randn(32, 96), torch.tensor([[1, 4, 8]])
    with Convolutions() as before:
        wanted = tower(patches_PX, grids).pooler_output
    assert describe_kernels(model, device_type="cpu")["Conv3d"] == "patches (2 x 4 x 4, a product)"
    apply_kernels(model, torch_kernels([]), ("patches",))
    with Convolutions() as after:
        found = tower(patches_PX, grids).pooler_output
    assert after.count < before.count
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    assert describe_kernels(model, device_type="cpu")["Conv3d"].startswith("patches, in use")


def test_patches_asked_for_where_there_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match=r"has no place for patches\. Leave it out"):
        apply_kernels(make_model("qwen2_vl").model.language_model, torch_kernels([]), ("patches",))
    with pytest.raises(ValueError, match="fused kernels run on CUDA, not on cpu"):
        use_kernels(make_model("qwen2_vl"), ("patches",), device_type="cpu")
    assert find_patches(nn.Conv2d(3, 5, (2, 4), (2, 4))) == Patches((2, 4))
