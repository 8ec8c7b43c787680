"""The loss of documents that are not trained on. Gradients, generators and the place in the data stay as they are."""

from collections.abc import Callable
from contextlib import closing

import torch
from batches import read_held_out
from decision import Decision
from request import Config
from sources import short_names
from step import add_by_source_, sum_losses
from transformers import PreTrainedModel

from omni_mesh import Mesh
from omni_models import count_losses, loss_weights
from omni_models.losses import TEXT
from omni_parallel import global_sum, reshard


def evaluate(
    model: PreTrainedModel, config: Config, run: Decision, mesh: Mesh, *, beat: Callable[[], None]
) -> dict[str, float]:
    """The mean loss (nats a target) of all that is held out, `loss`; of text of each source of several,
    `loss/NAME`; of a model with decoders `loss_of_text` and that of each; and how many `targets` of text there are.

    Effect: collective; reads the data. The model is as it was after it.

    Args:
        model: sharded or not.
        config: of the run.
        run: what was decided.
        mesh: of the run.
        beat: called before each batch.
    """
    device = torch.device(run.device)
    weights = loss_weights(model.config)
    sums_2D = torch.zeros(2, len(weights), dtype=torch.float64, device=device)
    sums_2N = torch.zeros(2, len(run.held_out), dtype=torch.float64, device=device)
    batches = read_held_out(config, run, mesh)
    model.eval()
    with torch.no_grad(), closing(batches):
        for rows, _ in batches:
            beat()
            if not global_sum(torch.tensor(not rows.over, device=device).long()):
                break
            inputs = rows.on(device)
            labels_Bs, sources_B = inputs.pop("labels_Bs"), inputs.pop("sources_B")
            del inputs["real_T"]
            each_Bs = torch.zeros(labels_Bs.shape, device=device)
            sums = sum_losses(model, inputs, labels_Bs, run.compute.loss, each_Bs)
            counts = count_losses(inputs, labels_Bs)
            sums_2D += torch.stack([torch.stack([*sums.values()]), torch.stack([*counts.values()])])
            add_by_source_(sums_2N, each_Bs, labels_Bs, sources_B)
    # What the forward pass gathered is of before the next update.
    reshard(model.train())
    losses_N, targets_N = global_sum(sums_2N).tolist()
    names = short_names([part.source.name for part in run.held_out])
    each = {f"loss/{name}": a / b for name, a, b in zip(names, losses_N, targets_N, strict=True) if b}
    if not sum(targets_N):
        raise ValueError(f"nothing to learn in what is held out: {', '.join(p.source.name for p in run.held_out)}.")
    mean = sum(losses_N) / sum(targets_N)
    drawn = {
        name: a / b for name, a, b in zip(weights, *global_sum(sums_2D).tolist(), strict=True) if b and name != TEXT
    }
    if drawn:
        each |= {f"loss_of_{name}": loss for name, loss in {TEXT: mean, **drawn}.items()}
        mean += sum(weights[name] * loss for name, loss in drawn.items())
    return {"loss": mean, **(each if len(each) > 1 else {}), "targets": int(sum(targets_N))}
