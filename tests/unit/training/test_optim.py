"""Learning rate, plan, optimizers, average of the weights."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from resgen.errors import CheckpointError
from resgen.kinds import KINDS, build
from resgen.models.resgen import ResGenConfig
from resgen.training.ema import Ema, ema_decay_at
from resgen.training.optim import Optimizers, Plan, learning_rate_factor
from resgen.types import CodeSpec


def make(net, **changes):
    values = {"learning_rate": 0.1, "betas": (0.9, 0.99), "weight_decay": 0.1, "clip_norm": 0.0} | changes
    names = {p: name for name, p in net.named_parameters()}
    return Optimizers({"main": list(net.parameters())}, names, **values)


def test_learning_rate_rises_stays_and_falls_to_zero():
    factors = [learning_rate_factor(s, warmup_steps=4, decay_start=10, num_steps=20) for s in range(21)]
    assert factors[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert factors[4:11] == [1.0] * 7
    assert factors[11:] == pytest.approx([1 - k / 10 for k in range(1, 11)])
    assert learning_rate_factor(500, warmup_steps=0, decay_start=10, num_steps=None) == 1.0


def test_cosine_decay_has_its_shape():
    values = [learning_rate_factor(s, warmup_steps=0, decay_start=0, num_steps=8, shape="cosine") for s in range(9)]
    assert values == pytest.approx([(1 + math.cos(math.pi * s / 8)) / 2 for s in range(9)])


def test_plan_by_steps_is_known_from_the_start():
    plan = Plan.fresh(1000, None, 0.2)
    assert (plan.decay_start, plan.planned_steps) == (800, 1000)
    assert Plan.fresh(1000, None, 1.0).decay_start == 0
    assert Plan.fresh(1000, None, 0.0).decay_start == 1000


def test_plan_by_time_begins_the_decay_when_its_share_of_the_budget_is_left():
    plan = Plan.fresh(10**6, 10.0, 0.25)
    assert plan.updated(70, 449.0, 0.25) is plan and plan.planned_steps is None
    fixed = plan.updated(75, 450.0, 0.25)
    assert (fixed.decay_start, fixed.planned_steps) == (75, 100)
    assert fixed.updated(90, 599.0, 0.25) is fixed


def test_plan_by_time_ends_at_num_steps_if_that_comes_first():
    plan = Plan.fresh(100, 10.0, 0.25)
    assert plan.updated(74, 20.0, 0.25).planned_steps is None
    fixed = plan.updated(75, 20.0, 0.25)
    assert (fixed.decay_start, fixed.planned_steps) == (75, 100)
    late = plan.updated(74, 450.0, 0.25)
    assert (late.decay_start, late.planned_steps) == (74, 99)


def test_plan_by_time_with_decay_from_the_start_measures_a_tenth_first():
    plan = Plan.fresh(10**6, 10.0, 1.0)
    assert plan.updated(0, 100.0, 1.0).planned_steps is None
    assert plan.updated(9, 59.0, 1.0).planned_steps is None
    assert plan.updated(10, 60.0, 1.0).planned_steps == 100


def test_optimizer_equals_plain_adamw_without_decay_of_vectors():
    torch.manual_seed(0)
    ours, theirs = nn.Linear(3, 2), nn.Linear(3, 2)
    theirs.load_state_dict(ours.state_dict())
    optimizers = make(ours)
    reference = torch.optim.AdamW(
        [{"params": [theirs.weight], "weight_decay": 0.1}, {"params": [theirs.bias], "weight_decay": 0.0}],
        lr=0.05,
        betas=(0.9, 0.99),
        foreach=False,
    )
    for _ in range(4):
        x = torch.randn(5, 3)
        for net in (ours, theirs):
            net.zero_grad()
            net(x).square().sum().backward()
        optimizers.step(0.5)
        reference.step()
    torch.testing.assert_close(ours.weight, theirs.weight, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ours.bias, theirs.bias, rtol=1e-6, atol=1e-6)


def test_biases_of_any_shape_do_not_decay_and_nothing_else_is_called_one():
    """With gradients of zero, all that AdamW does is the decay."""
    spec = CodeSpec(depth=2, codebook_size=8, code_dim=4, shape=(2, 2))
    config = ResGenConfig(
        width=16, num_layers=1, num_heads=2, mlp_width=32, condition_width=16, num_classes=2, mean_rank=2
    )
    for kind in KINDS.values():
        net = build(kind.sized(config, 1), spec)
        before = {}
        for name, parameter in net.named_parameters():
            parameter.requires_grad_(True)
            nn.init.ones_(parameter)
            parameter.grad = torch.zeros_like(parameter)
            before[name] = parameter.detach().clone()
        make(net).step(1.0)
        decayed = {name for name, parameter in net.named_parameters() if not torch.equal(parameter, before[name])}
        vectors = {name for name, parameter in net.named_parameters() if parameter.ndim < 2}
        biases = {name for name in before if name.split(".")[-1] in ("bias", "out_bias", "biases", "offset")}
        assert any(before[name].ndim == 2 for name in biases), f"{kind.name}: biases of two axes are what this is about"
        assert decayed == before.keys() - vectors - biases, kind.name


def test_clipping_reports_the_norm_before_it():
    net = nn.Linear(2, 1)
    net.weight.grad, net.bias.grad = torch.tensor([[3.0, 0.0]]), torch.tensor([4.0])
    assert float(make(net, clip_norm=1.0).clip()["main"]) == pytest.approx(5.0)
    assert torch.cat([net.weight.grad.flatten(), net.bias.grad]).norm() == pytest.approx(1.0, rel=1e-4)
    net.weight.grad = torch.tensor([[3.0, 0.0]])
    make(net, clip_norm=0.0).clip()
    assert net.weight.grad[0, 0] == 3.0
    net.zero_grad()
    assert make(net).clip() == {}


def test_optimizer_state_travels_as_tensors():
    torch.manual_seed(0)
    net = nn.Linear(3, 2)
    first = make(net)
    net(torch.randn(4, 3)).sum().backward()
    first.step(1.0)
    tensors = {name: value.clone() for name, value in first.tensors().items()}
    assert sorted(tensors) == sorted(
        f"main.{p}.{k}" for p in ("weight", "bias") for k in ("exp_avg", "exp_avg_sq", "step")
    )
    twin = nn.Linear(3, 2)
    twin.load_state_dict(net.state_dict())
    second = make(twin)
    second.load(tensors, "here")
    for a, b in ((net, first), (twin, second)):
        a.zero_grad()
        a(torch.ones(1, 3)).square().sum().backward()
        b.step(1.0)
    assert torch.equal(net.weight, twin.weight) and torch.equal(net.bias, twin.bias)
    for wrong, message in [
        (tensors | {"main.weight.exp_avg": torch.zeros(3, 3)}, r"'main.weight.exp_avg' has shape \[3, 3\] .*\[2, 3\]"),
        (tensors | {"main.other.step": torch.zeros(())}, "belongs to no parameter"),
        ({k: v for k, v in tensors.items() if k != "main.bias.step"}, "'main.bias' is incomplete"),
    ]:
        with pytest.raises(CheckpointError, match=message):
            make(twin).load(wrong, "here")


def test_average_follows_the_formula_and_gives_the_weights_back():
    net = nn.Linear(2, 2)
    ema = Ema(net, 0.5)
    expected = net.weight.detach().clone()
    for step in range(12):
        with torch.no_grad():
            net.weight.add_(1.0)
        ema.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * net.weight.detach()
    assert [ema_decay_at(s, 0.5) for s in (0, 1, 8, 9)] == [0.1, 2 / 11, 0.5, 0.5]
    torch.testing.assert_close(ema.tensors()["weight"], expected)
    own = net.weight.detach().clone()
    with pytest.raises(KeyError), ema.applied():
        torch.testing.assert_close(net.weight, expected)
        raise KeyError
    assert torch.equal(net.weight, own)
    other = Ema(net, 0.5)
    other.load(ema.tensors(), "here")
    assert torch.equal(other.tensors()["weight"], ema.tensors()["weight"])
    with pytest.raises(CheckpointError, match="'weight' has shape"):
        other.load({"weight": torch.zeros(1), "bias": torch.zeros(2)}, "here")


def test_the_state_lies_in_memory_as_the_parameter_does() -> None:
    """The fused AdamW reads both in the order of the parameter, whatever the state's own is."""

    def trained(restart: bool) -> Tensor:
        stream = torch.Generator().manual_seed(0)
        weight = torch.randn(4, 3, 3, 3, generator=stream).contiguous(memory_format=torch.channels_last)
        parameter = nn.Parameter(weight)
        for part in range(2):
            if part == 0 or restart:
                saved = {} if part == 0 else {k: v.contiguous().clone() for k, v in optimizers.tensors().items()}
                optimizers = Optimizers(
                    {"a": [parameter]},
                    {parameter: "weight"},
                    learning_rate=0.1,
                    betas=(0.9, 0.95),
                    weight_decay=0.0,
                    clip_norm=0.0,
                )
                optimizers.load(saved, "here")
            for _ in range(2):
                gradient = torch.randn(4, 3, 3, 3, generator=stream)
                parameter.grad = gradient.contiguous(memory_format=torch.channels_last)
                optimizers.step(1.0)
        return parameter.detach()

    assert torch.equal(trained(restart=True), trained(restart=False))
