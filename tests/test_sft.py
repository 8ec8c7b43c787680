"""Finetuning on chats is plain transformers with the mask of the chat template, and reads as pretraining does."""

import json
from dataclasses import replace
from pathlib import Path

import chats
import merge
import pytest
import sft
import torch
from chatting import asked_in, tune
from ranks import Run
from request import EvalConfig
from request_chats import ChatConfig
from torch.nn.functional import cross_entropy
from training import SMALL, train
from transformers import AutoModelForCausalLM, AutoTokenizer

from omni_data import conversation_of, read_tokenizer
from omni_mesh import MeshConfig
from omni_models import build_model, read_config
from omni_parallel import AdamWConfig


def plain_losses(asked: sft.Config, folder: Path) -> tuple[float, int]:
    """The mean loss of all chats at the first weights, by transformers alone: its model, template and mask."""
    ours = build_model(read_config(asked.run.model), seed=asked.run.seed)
    model = AutoModelForCausalLM.from_config(ours.config, dtype=torch.float32, attn_implementation="eager").eval()
    model.load_state_dict(ours.state_dict())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    losses = []
    for line in Path(asked.run.eval.data[0]).read_text().splitlines():
        messages = list(conversation_of(json.loads(line)).messages)
        how = {"tokenize": True, "return_dict": True, "return_assistant_tokens_mask": True}
        encoded = tokenizer.apply_chat_template(messages, **how)
        ids, mask = (torch.tensor(encoded[name])[: asked.run.seq_len] for name in ("input_ids", "assistant_masks"))
        with torch.no_grad():
            logits = model(input_ids=ids[None]).logits[0, :-1]
        losses += cross_entropy(logits, torch.where(mask[1:] > 0, ids[1:], -100), reduction="none")[
            mask[1:] > 0
        ].tolist()
    return sum(losses) / len(losses), len(losses)


@pytest.mark.parametrize("mesh", [MeshConfig(shard=1), MeshConfig(shard=2), MeshConfig(shard=1, sp=2)])
def test_the_loss_is_of_what_the_assistant_says(mesh: MeshConfig, run: Run, tmp_path: Path) -> None:
    asked = asked_in(tmp_path, mesh=mesh, optim=AdamWConfig(lr=1e-12), eval=EvalConfig(), steps=1)
    asked = replace(asked, run=replace(asked.run, eval=EvalConfig(data=asked.run.data)))
    (row,) = run(tune, mesh.shard * mesh.sp, asked)[0]
    (told,) = [json.loads(line) for line in (asked.run.out / "eval.jsonl").read_text().splitlines()]
    loss, targets = plain_losses(asked, asked.run.out / "model")
    assert (told["loss"], told["targets"]) == (pytest.approx(loss, rel=1e-5), targets)
    assert row["loss"] == pytest.approx(loss, rel=0.05), "a part of them, at the same weights"


def test_workers_and_a_stop_change_no_bit(run: Run, tmp_path: Path) -> None:
    asked = asked_in(tmp_path, steps=4)
    whole = run(tune, 1, asked)[0]
    split = replace(asked, run=replace(asked.run, out=tmp_path / "split"))
    run(tune, 1, replace(split, run=replace(split.run, stop_after=2, workers=2)))
    with pytest.raises(ValueError, match=r"\(--chat.learn assistant, now --chat.learn last\)"):
        sft.decide_chats(replace(split, chat=ChatConfig(learn="last")))
    assert [row["loss"] for row in run(tune, 1, split)[0]] == [row["loss"] for row in whole]


def test_it_starts_from_the_weights_of_its_model_and_leaves_its_template(run: Run, tmp_path: Path) -> None:
    config = replace(SMALL, steps=2, out=tmp_path / "pretrained")
    run(train, 1, config)
    merge.main(merge.Config(run=config.out, to=tmp_path / "merged"))
    template = tmp_path / "own.jinja"
    template.write_text(chats.PLAIN.replace("Assistant", "Helper").replace("capitalize", "upper"))
    asked = asked_in(tmp_path, model=str(tmp_path / "merged"), tokenizer=None, chat=ChatConfig(template=template))
    asked = replace(asked, run=replace(asked.run, eval=EvalConfig(data=asked.run.data), optim=AdamWConfig(lr=1e-12)))
    run(tune, 1, asked)
    told = json.loads((asked.run.out / "eval.jsonl").read_text().splitlines()[-1])
    tokenizer = AutoTokenizer.from_pretrained(asked.run.out / "model")
    assert tokenizer.chat_template == template.read_text()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    losses = []
    for line in Path(asked.run.data[0]).read_text().splitlines():
        messages = list(conversation_of(json.loads(line)).messages)
        how = {"tokenize": True, "return_dict": True, "return_assistant_tokens_mask": True, "return_tensors": "pt"}
        encoded = tokenizer.apply_chat_template(messages, **how)
        ids, mask = (encoded[name][:, : asked.run.seq_len] for name in ("input_ids", "assistant_masks"))
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, :-1]
        losses.append(cross_entropy(logits, ids[0, 1:], reduction="none")[mask[0, 1:] > 0])
    assert told["loss"] == pytest.approx(torch.cat(losses).mean().item(), rel=1e-5)


def test_all_that_is_wrong_with_chats_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"text": "no chat"}\n')
    asked = asked_in(tmp_path, data=(str(tmp_path / "bad.jsonl"), "nowhere.jsonl"), steps=0)
    with pytest.raises(ValueError) as caught:
        sft.decide_chats(asked)
    assert "--steps 0 must be" in str(caught.value) and "nowhere.jsonl: no such file" in str(caught.value)
    for options in (("enable_thinking",), ("a=b",), ("=1",)):
        with pytest.raises(ValueError, match="an option is name=value with a value in JSON"):
            sft.decide_chats(replace(asked, chat=ChatConfig(options=options)))
    template = tmp_path / "own.jinja"
    template.write_text("{% if not enable_thinking is defined %}{{ 'no think' }}{% endif %} dates\n" + chats.PLAIN)
    good = asked_in(tmp_path)
    for name, told in (("enable_thinkng", "did you mean enable_thinking?"), ("dates", "look for its name there")):
        options = ChatConfig(template=template, options=(f"{name}=1",))
        with pytest.raises(ValueError, match=rf"--chat.options {name}: the chat template has no such .*{told}"):
            sft.decide_chats(replace(good, chat=options))
    sft.decide_chats(replace(good, chat=ChatConfig(template=template, options=("enable_thinking=false",))))
    with pytest.raises(ValueError, match=r"chat\.template .* cannot be read"):
        sft.decide_chats(replace(asked, chat=ChatConfig(template=tmp_path / "none")))
    bare = read_tokenizer("bytes").save(tmp_path / "bare")
    assert (
        "bare with a plain chat template, as it has none"
        in sft.decide_chats(asked_in(tmp_path, tokenizer=str(bare))).told()
    )
    (bare / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    with pytest.raises(ValueError, match=r"has no token that ends a text either: name a file .* as --chat\.template"):
        sft.decide_chats(asked_in(tmp_path, tokenizer=str(bare)))


def test_a_run_that_was_not_merged_is_no_model_to_start_from(tmp_path: Path) -> None:
    (tmp_path / "run" / "model").mkdir(parents=True)
    (tmp_path / "run" / "model" / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"is a run, not a model. Merge it first: uv run apps/merge.py .*/run --to"):
        sft.decide_chats(asked_in(tmp_path, model=str(tmp_path / "run")))
    (tmp_path / "run" / "step-00000010").mkdir()
    told = r"step-00000010 is a checkpoint, not a model. Merge it first: .*/run --step 10 --to .*/run/merged-10"
    with pytest.raises(ValueError, match=told):
        sft.decide_chats(asked_in(tmp_path, model=str(tmp_path / "run" / "step-00000010")))


def test_texts_are_told_apart_from_chats(tmp_path: Path) -> None:
    (tmp_path / "web.jsonl").write_text('{"text": "A web page."}\n')
    with pytest.raises(ValueError, match=r"no conversation: .*\n.*Texts are what apps/pretrain.py trains on"):
        sft.decide_chats(asked_in(tmp_path, data=(str(tmp_path / "web.jsonl"),)))


def test_rates_and_rows_that_are_much_for_a_model_are_told(tmp_path: Path) -> None:
    model = build_model(read_config("tiny", max_position_embeddings=64))
    model.save_pretrained(tmp_path / "own")
    asked = asked_in(tmp_path, model=str(tmp_path / "own"), optim=AdamWConfig(lr=1e-3), seq_len=128, tokenizer="bytes")
    told = sft.decide_chats(asked).told()
    assert f"{tmp_path / 'own'}; --optim.lr 0.001 is high for weights that have learned" in told
    assert "128 tokens, and the model is made for 64: longer documents go beyond" in told
    told = sft.decide_chats(replace(asked, run=replace(asked.run, optim=AdamWConfig(lr=1e-5), seq_len=64))).told()
    assert "is high for" not in told and "go beyond" not in told


def test_finetuning_of_random_weights_is_told(tmp_path: Path) -> None:
    told = sft.decide_chats(asked_in(tmp_path)).told()
    assert "random weights of seed 0: nothing was learned before, which --weights would bring" in told


def test_the_first_chat_that_is_none_is_named_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"text": "no chat"}\n')
    with pytest.raises(ValueError, match=r"bad\.jsonl:1: .*text"):
        sft.decide_chats(asked_in(tmp_path, data=(str(tmp_path / "bad.jsonl"),)))
