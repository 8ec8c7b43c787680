"""Each package alone, in the loop of someone else: the examples of their READMEs, run as they stand, obey laws.

Ranks come from the warm pool. Functions that are sent to it are in `alone_ranks`.
"""

import json
import re
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from alone_ranks import reduce_over, save_and_resume, train_by_hand
from ranks import Run
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

ROOT = Path(__file__).parent.parent


def block_of(package: str, having: str) -> str:
    """The Python of the README of a package in which these words are."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "packages" / package / "README.md").read_text(), re.DOTALL)
    (block,) = (block for block in blocks if having in block)
    return block


def test_a_model_written_by_hand_has_the_gradients_of_one_rank(run: Run) -> None:
    script = block_of("omni-parallel", "join_world()")
    (alone,), (cut, _) = run(train_by_hand, 1, script), run(train_by_hand, 2, script)
    assert len(alone) == len(cut) == 20 and alone[-1][0] < alone[0][0] / 2
    for (loss, grads), (other, others) in zip(alone[:10], cut[:10], strict=True):
        assert other == pytest.approx(loss, rel=1e-5) and grads.keys() == others.keys()
        for name, grad in grads.items():
            assert torch.allclose(grad, others[name], rtol=1e-4, atol=1e-6), name


def test_a_collective_is_of_one_axis(run: Run) -> None:
    told = run(reduce_over, 4, block_of("omni-mesh", "launch("))
    assert told == [
        f"rank {r} and its peers {(r // 2 * 2, r // 2 * 2 + 1)} sum to {1.0 + 4 * (r // 2)}" for r in range(4)
    ]


def test_a_torch_script_that_was_stopped_is_the_unbroken_one_to_the_bit(run: Run, tmp_path: Path) -> None:
    script = block_of("omni-ckpt", "save_dcp")
    whole, split, alone = tmp_path / "whole", tmp_path / "split", tmp_path / "alone"
    unbroken = run(save_and_resume, 2, script, whole)
    before = run(save_and_resume, 2, script, split, 12)
    shutil.copytree(split, alone)
    after = run(save_and_resume, 2, script, split)
    for (said, params), (early, _), (late, others) in zip(unbroken, before, after, strict=True):
        assert (early, late) == (said[:12], said[10:])
        assert all(torch.equal(params[name], other) for name, other in others.items())
    (said, params), *_ = run(save_and_resume, 1, script, split)
    assert said == [] and all(torch.equal(params[name], other) for name, other in unbroken[0][1].items())
    (said, params), *_ = run(save_and_resume, 1, script, alone)
    assert len(said) == 10, "one rank goes on from what two saved"
    assert all(torch.allclose(params[name], other, atol=1e-5) for name, other in unbroken[0][1].items())


def test_packed_documents_in_a_loop_of_torch_have_the_loss_of_plain_transformers() -> None:
    names: dict[str, Any] = {"print": lambda *_: None}
    exec(block_of("omni-models", "unsupported("), names)
    model = names["model"]
    plain = AutoModelForCausalLM.from_config(model.config, attn_implementation="eager")
    plain.load_state_dict(model.state_dict())
    loss = names["summed_loss"](model, names["row"], names["labels"]) / names["count_targets"](names["labels"])
    assert loss.item() == pytest.approx(loss_of_documents(plain, names["row"]), rel=1e-5)


@pytest.mark.filterwarnings("default")
def test_trainer_learns_packed_documents_alone_and_resumes_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("accelerate")
    from transformers import Trainer

    code, step = block_of("omni-data", "Trainer("), Trainer.training_step
    seen: list[tuple[torch.Tensor, float]] = []
    stop_before, alone = 0, []

    def note(self: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        if len(seen) + 1 == stop_before:
            raise KeyboardInterrupt
        if not seen and not alone:
            alone.append(loss_of_documents(model, inputs))
        loss = step(self, model, inputs, *args, **kwargs)
        seen.append((inputs["input_ids"].clone(), loss.item()))
        return loss

    monkeypatch.setattr(Trainer, "training_step", note)
    for name in ("whole", "split"):
        (tmp_path / name).mkdir()
        texts = (f"Document {i}" + ", and so on" * (i % 5) for i in range(600))
        (tmp_path / name / "my.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    monkeypatch.chdir(tmp_path / "whole")
    exec(code, {})
    whole = seen.copy()
    assert len(whole) == 6 and whole[0][1] == pytest.approx(alone[0], rel=1e-5)
    seen.clear()
    stop_before = 4
    monkeypatch.chdir(tmp_path / "split")
    with pytest.raises(KeyboardInterrupt):
        exec(code, {})
    assert [path.name for path in Path("trained").iterdir()] == ["checkpoint-2"]
    del seen[2:]  # Those after the checkpoint were done for nothing.
    stop_before = 0
    exec(code, {})
    assert [loss for _, loss in seen] == [loss for _, loss in whole]
    assert all(torch.equal(one, other) for (one, _), (other, _) in zip(seen, whole, strict=True))


def loss_of_documents(model: Any, inputs: dict[str, torch.Tensor]) -> float:
    """The mean loss of the documents of packed rows, each by itself."""
    losses = []
    for tokens_S, positions_S in zip(inputs["input_ids"], inputs["position_ids"], strict=True):
        starts = [*(positions_S == 0).nonzero().flatten().tolist(), len(tokens_S)]
        for start, stop in pairwise(starts):
            ids = tokens_S[None, start:stop]
            with torch.no_grad():
                losses += cross_entropy(model(input_ids=ids).logits[0, :-1], ids[0, 1:], reduction="none").tolist()
    return sum(losses) / len(losses)
