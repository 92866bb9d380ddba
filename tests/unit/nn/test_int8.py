"""Linear layers with int8 weights: what they compute, alone and in any batch, and what refuses them."""

from __future__ import annotations

import copy
import io
import pickle
import weakref

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resgen.errors import ConfigError
from resgen.nn import int8
from resgen.nn.int8 import Int8Weight, check_floating, check_int8, choose_type, has_int8, is_int8, to_int8
from resgen.nn.transformer import Transformer
from resgen.ops.linear import feed_forward, linear

needs_int8 = pytest.mark.skipif(not has_int8(), reason="this processor or build has no int8 products")
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
CPU = torch.device("cpu")


def layer(dtype: torch.dtype, inputs: int = 96, outputs: int = 80) -> tuple[Tensor, Tensor]:
    stream = torch.Generator().manual_seed(0)
    weight = torch.randn(outputs, inputs, generator=stream).mul_(0.1)
    weight[3] *= 100
    weight[5] = 0
    return weight.to(dtype), torch.randn(outputs, generator=stream).to(dtype)


def rows(dtype: torch.dtype, count: int, inputs: int = 96) -> Tensor:
    x = torch.randn(count, inputs, generator=torch.Generator().manual_seed(1))
    return (x * torch.logspace(-3, 3, count)[:, None]).to(dtype)


def slowly(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The definition, in float64: whole numbers -127..127 times a scale for each row and each output."""
    whole = []
    for matrix in (x.double(), weight.double()):
        scale = matrix.abs().amax(1, keepdim=True) / 127
        scale[scale == 0] = 1
        whole.append(torch.floor(matrix / scale + 0.5) * scale)
    return whole[0] @ whole[1].T + bias.double()


@needs_int8
@DTYPES
@pytest.mark.parametrize("gelu", [False, True])
def test_products_are_those_of_whole_numbers(dtype: torch.dtype, gelu: bool) -> None:
    (weight, bias), x = layer(dtype), rows(dtype, 40)
    value = linear(x, Int8Weight(weight), bias, gelu=gelu)
    expected = slowly(x, weight, bias)
    expected = F.gelu(expected, approximate="tanh") if gelu else expected
    assert value.dtype == dtype and value.shape == (40, 80)
    scale = expected.abs().amax(1, keepdim=True)
    # One activation in ten thousand lies so near the middle of two whole numbers that float32 rounds it the other way:
    # one step of it, 1/127 of its greatest, through one weight.
    assert ((value.double() - expected).abs() / scale).max() < (6e-3 if dtype == torch.bfloat16 else 1e-3)
    assert ((value.double() - expected).norm() / expected.norm()) < (4e-3 if dtype == torch.bfloat16 else 1e-4)


@needs_int8
@DTYPES
def test_rounding_moves_a_layer_by_two_per_cent(dtype: torch.dtype) -> None:
    (weight, bias), x = layer(dtype), rows(dtype, 1).expand(1, -1)
    exact = F.linear(x.double(), weight.double())
    value = linear(x, Int8Weight(weight), torch.zeros_like(bias))
    error = (value.double() - exact).norm() / exact.norm()
    assert 1e-4 < error < 0.02


@needs_int8
@DTYPES
@pytest.mark.parametrize("elements", [1, 96 * 3, 1 << 20])
@pytest.mark.parametrize(("gelu", "outputs"), [(False, 80), (True, 128)], ids=["plain", "gelu"])
def test_a_row_does_not_depend_on_the_others(
    dtype: torch.dtype, elements: int, gelu: bool, outputs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the last bit; gelu at widths that fill the processor's vectors, where the last numbers of a tensor are not
    computed by another function."""
    (weight, bias), x = layer(dtype, outputs=outputs), rows(dtype, 33)
    packed = Int8Weight(weight)
    together = linear(x, packed, bias, gelu=gelu)
    monkeypatch.setattr(int8, "PART_ELEMENTS", elements)
    assert torch.equal(linear(x, packed, bias, gelu=gelu), together)
    alone = [linear(x[k : k + 1], packed, bias, gelu=gelu) for k in range(len(x))]
    assert torch.equal(torch.cat(alone), together)


@needs_int8
@DTYPES
def test_shapes_and_rows_without_numbers(dtype: torch.dtype) -> None:
    weight, bias = layer(dtype)
    packed = Int8Weight(weight)
    assert linear(torch.zeros(0, 2, 96, dtype=dtype), packed, bias).shape == (0, 2, 80)
    assert torch.equal(linear(torch.zeros(2, 3, 96, dtype=dtype), packed, bias), bias.expand(2, 3, 80))
    tiny = torch.full((1, 96), torch.finfo(torch.float32).tiny, dtype=dtype)
    assert torch.equal(linear(tiny, packed, bias), bias[None])


@needs_int8
@DTYPES
def test_a_transformer(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    network = Transformer(width=48, num_layers=2, num_heads=4, mlp_width=96).to(dtype).eval()
    for block in network.blocks:
        nn.init.normal_(block.bias)
    other = copy.deepcopy(network)
    matrices = [weakref.ref(part.weight) for part in other.modules() if isinstance(part, nn.Linear)]
    to_int8(other)
    assert is_int8(other) and not is_int8(network) and not any(matrix() is not None for matrix in matrices)
    assert [p.shape for p in other.parameters()] == [p.shape for p in network.parameters()]
    x, modulation = torch.randn(3, 10, 48).to(dtype), torch.randn(3, 8, 48).to(dtype)
    with torch.inference_mode():
        expected, value = network(x, modulation).float(), other(x, modulation).float()
        assert 1e-4 < (value - expected).norm() / expected.norm() < 0.03
        block = other.blocks[0]
        h = feed_forward(x, block.up.weight, block.up.bias, block.down.weight, block.down.bias)
        one = feed_forward(x[1:2], block.up.weight, block.up.bias, block.down.weight, block.down.bias)
        assert torch.equal(h[1:2], one)
        if dtype == torch.float32:
            assert torch.allclose(other(x[1:2], modulation[1:2]), value[1:2], rtol=0, atol=1e-5)


@needs_int8
def test_int8_weights_only_multiply() -> None:
    packed = nn.Parameter(Int8Weight(layer(torch.float32)[0]), requires_grad=False)
    assert isinstance(packed, Int8Weight) and packed.numel() == 96 * 80 and "80, 96" in repr(packed)
    with pytest.raises(
        TypeError, match="int8 weights can multiply activations, but not aten.*; load the model again with"
    ):
        torch.add(packed, 1)
    with pytest.raises(TypeError, match="int8 weights cannot be shared between processes; load the model in each"):
        packed.share_memory_()


@needs_int8
@pytest.mark.parametrize("change", ["half", "double", "to", "to_empty", "share_memory"])
def test_a_conversion_is_refused_before_it_changes_anything(change: str) -> None:
    network = Transformer(width=48, num_layers=2, num_heads=4, mlp_width=96).eval()
    to_int8(network)
    twin, before = copy.deepcopy(network), [(p, p.dtype, p.device) for p in network.parameters()]
    assert network.to("cpu") is network and network.float() is network
    for part in (network, network.blocks[0], network.blocks[0].attention, twin):
        with pytest.raises(TypeError, match="^int8 weights can.*; load the model"):
            getattr(part, change)(*{"to": ["meta"]}.get(change, []), **{"to_empty": {"device": "cpu"}}.get(change, {}))
    for one in (network, twin):
        assert [(p.dtype, p.device) for p in one.parameters()] == [(dtype, device) for _, dtype, device in before]
    assert all(p is q for p, (q, _, _) in zip(network.parameters(), before, strict=True))
    assert all(p.device.type == "cpu" for p in network.parameters())


@needs_int8
def test_a_state_is_refused_before_it_changes_anything() -> None:
    network = Transformer(width=48, num_layers=2, num_heads=4, mlp_width=96).eval()
    state = {name: torch.full_like(value, 3.0) for name, value in network.state_dict().items()}
    to_int8(network)
    twin = copy.deepcopy(network)
    for part in (network, network.blocks[1], twin):
        kept = [value for value in part.parameters() if not isinstance(value, Int8Weight)]
        before = [value.clone() for value in kept]
        for strict in (True, False):
            with pytest.raises(TypeError, match="^int8 weights cannot be replaced by a state; load the model again"):
                part.load_state_dict(state, strict=strict)
        assert kept and all(torch.equal(value, old) for value, old in zip(kept, before, strict=True))


@needs_int8
def test_pickles_are_refused() -> None:
    network = nn.Sequential(Transformer(width=48, num_layers=1, num_heads=4, mlp_width=96))
    to_int8(network)
    said = "^int8 weights cannot be pickled or saved; load the model again with dtype=bfloat16 or float32$"
    with pytest.raises(TypeError, match=said):
        pickle.dumps(network)
    with pytest.raises(TypeError, match=said):
        torch.save(network.state_dict(), io.BytesIO())


@needs_int8
@pytest.mark.parametrize("learns", ["x", "bias"])
def test_int8_weights_have_no_gradients(learns: str) -> None:
    (weight, bias), x = layer(torch.float32), rows(torch.float32, 2)
    packed = Int8Weight(weight)
    expected = linear(x, packed, bias)
    (x if learns == "x" else bias).requires_grad_()
    with pytest.raises(TypeError, match="^int8 weights have no gradients; call the network in torch"):
        linear(x, packed, bias)
    with torch.no_grad():
        assert torch.equal(linear(x, packed, bias), expected)


def test_where_int8_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="dtype=int8 needs device=cpu, not cuda; on a GPU take dtype=bfloat16"):
        check_int8(torch.device("cuda"))
    monkeypatch.setattr(int8, "has_int8", lambda: False)
    with pytest.raises(ConfigError, match=r"dtype=int8 needs an x86 processor with VNNI .* take dtype=auto"):
        choose_type("int8", CPU)
    with pytest.raises(ConfigError, match=r"unknown dtype 'int7'.*int8"):
        choose_type("int7", CPU)
    assert choose_type("fp32", CPU) == torch.float32
    check_floating(nn.Linear(2, 2), "save")


@pytest.mark.parametrize("lack", ["machine", "oneDNN", "kernel", "overflow"])
def test_what_the_machine_must_have(lack: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def product(weight: Int8Weight, whole: Tensor) -> Tensor:
        if lack == "kernel":
            raise RuntimeError("no such kernel")
        return torch.full((4, 32), 64.0 * 127 - (lack == "overflow"))

    monkeypatch.setattr(int8, "Int8Weight", type("Fake", (), {"__init__": lambda *_: None, "_product": product}))
    monkeypatch.setattr(int8.platform, "machine", lambda: "arm64" if lack == "machine" else "x86_64")
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: lack != "oneDNN")
    assert has_int8.__wrapped__() is False
