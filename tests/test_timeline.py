"""Laws of what a device did: each moment counts once, and a kernel is known by its name."""

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from timeline import Event, Timeline, account, kind_of_work, read_timeline, tell_timeline
from torch.profiler import record_function
from watching import profiled, watch_steps

NAMES = {
    "ncclDevKernel_AllGather_RING_LL(ncclDevKernelArgsStorage<4096ul>)": "gathers and reductions",
    "ncclDevKernel_SendRecv(ncclDevKernelArgsStorage<4096ul>)": "exchange of rows",
    "gloo:all_to_all": "exchange of rows",
    "gloo:all_gather": "gathers and reductions",
    "c10d::allreduce_": "gathers and reductions",
    "Memcpy PtoP (Device -> Device)": "copies between GPUs",
    "Memcpy HtoD (Pinned -> Device)": "copies to and from the host",
    "Memcpy DtoH (Device -> Pinned)": "copies to and from the host",
    "Memcpy DtoD (Device -> Device)": "copies and casts",
    "_adamw": "optimizer",
    "void at::native::multi_tensor_apply_kernel<FusedAdamMathFunctor<float>>": "optimizer",
    "aten::_fused_adamw_": "optimizer",
    "nvjet_tst_256x128_64x4_2x1_v_bz_coopA_TNT": "matrix products",
    "aten::addmm": "matrix products",
    "aten::scaled_dot_product_attention": "attention",
    "triton_tem_fused_flex_attention_0": "attention",
    "triton_tem_fused_flex_attention_backward_zeros_1": "attention",
    "triton_poi_fused_cat_mul_silu_split_3": "compiled",
    "triton_per_fused__to_copy_add_scatter_sum_0": "compiled",
    "triton_red_fused_all_gather_into_tensor_mean_rsqrt_2": "compiled",
    "aten::mul": "elementwise",
}
WORK = {
    "compute": ("aten::mul", "nvjet_a"),
    "optimizer": ("_adamw",),
    "exposed_communication": ("ncclDevKernel_AllGather", "Memcpy PtoP (Device -> Device)", "gloo:all_to_all"),
    "exposed_host_copy": ("Memcpy HtoD (Pinned -> Device)",),
}


@pytest.mark.parametrize("name", NAMES)
def test_a_kernel_is_known_by_its_name(name: str) -> None:
    assert kind_of_work(name) == NAMES[name]


EVENTS = st.lists(st.builds(Event, st.sampled_from(sum(WORK.values(), ())), st.integers(0, 40), st.integers(0, 40)))


@given(EVENTS)
def test_each_moment_of_the_steps_counts_once(events: list[Event]) -> None:
    """As a count of each microsecond says."""
    begin, end = 5, 35
    told = account(Timeline(2, (begin, end), events, {"cudaStreamSynchronize": 3, "cudaEventSynchronize": 2}))
    counts = dict.fromkeys((*WORK, "idle"), 0)
    for at in range(begin, end):
        running = {event.name for event in events if event.begin <= at < event.end}
        busy = {name: bool(running & set(WORK[name])) for name in WORK}
        # Communication is exposed only where nothing else runs, copies of the host included.
        busy["exposed_communication"] &= not busy["exposed_host_copy"]
        counts[next((name for name in WORK if busy[name]), "idle")] += 1
    assert told.pop("host_syncs") == 2.5
    assert told.pop("profiled_seconds") == pytest.approx(30 / 2 / 1e6)
    assert told == pytest.approx({f"{name}_seconds": count / 2 / 1e6 for name, count in counts.items()})


def test_operators_of_a_cpu_count_once_and_those_outside_of_the_steps_do_not() -> None:
    x_NN = torch.randn(256, 256, requires_grad=True)
    seen: list[Any] = []

    def steps() -> Any:
        for _ in range(4):
            x_NN.sin()  # The data of a step.
            yield x_NN

    with profiled(torch.device("cpu")) as profiler:
        x_NN.exp()
        with watch_steps(range(2, 4), lambda: record_function("looked at"), at=0) as watched:
            for x in watched(steps()):
                seen.append(torch.nn.functional.linear(x, x).sum().backward())
    timeline = read_timeline(profiler)
    names = [event.name for event in timeline.events]
    assert (timeline.steps, timeline.waits, len(seen)) == (2, {}, 4)
    assert names.count("aten::linear") == 2 and names.count("aten::sin") == 2
    assert {"aten::addmm", "aten::exp"}.isdisjoint(names)
    told = account(timeline)
    assert 0 < told["compute_seconds"] <= told["profiled_seconds"]
    spans = sorted(event.span for event in timeline.events)
    assert all(one[1] <= other[0] for one, other in itertools.pairwise(spans))
    assert "matrix products: aten::linear" in tell_timeline(timeline)
