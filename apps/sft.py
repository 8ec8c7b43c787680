"""Supervised finetuning on chats: any model of transformers, its own chat template, loss on what the assistant says.

    uv run apps/sft.py                                       a tiny model on built-in chats; nothing is downloaded
    uv run apps/sft.py --model Qwen/Qwen3-0.6B --data chats.jsonl --seq-len 4096 --out runs/mine
    uv run apps/sft.py --model runs/pretrain/merged-200      go on from a model that apps/merge.py wrote

Records hold `messages` (role and content, or from and value), `prompt` and `completion`, or `instruction` and `output`.
It is apps/pretrain.py with chats for data, from the weights of --model. A run found in --out is continued.
"""

from preflight import answer, start
from request_chats import TOLD, Config

if __name__ == "__main__":
    answer(Config, __doc__, told=TOLD)  # What is wrong with flags, and what they are, is told before torch is there.

from explain import explain_run
from pretrain import train
from tune import decide_chats, with_weights
from watch import what_interrupt_left_of


def main(asked: Config) -> None:
    """Train as `asked`. Effect: as `train`, below `asked.run.out`."""
    train(with_weights(asked.run), decide_chats(asked), asked=asked, app="sft")


if __name__ == "__main__":
    start(main, decide_chats, Config, __doc__, told=TOLD, instead=explain_run, left=what_interrupt_left_of)
