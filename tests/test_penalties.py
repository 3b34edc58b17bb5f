"""Penalties and proximal steps: formulas by hand, gradients by differences, bounds by enumeration, optimality."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from certbound.compress.factorised import relu_network
from certbound.compress.layers import as_matrix, weight_parameters
from certbound.compress.penalties import (
    PENALTIES,
    PROXIMAL_STEPS,
    alignment_penalty,
    dispersion_penalty,
    frobenius_norm,
    group_lasso_penalty,
    group_lasso_proximal_step,
    l1_penalty,
    l1_proximal_step,
    nuclear_norm_penalty,
    nuclear_norm_proximal_step,
    row_norms,
    row_sparsity_penalty,
    shrink_rows,
    shrink_singular_values,
)
from certbound.errors import InputError, MissingDependencyError, UnsupportedLayerError
from certbound.lipschitz.alignment import alignment_pair

ANY_MODULE = ("l1", "nuclear", "group-lasso", "row-sparsity", "dispersion")
NORMS = {"alignment-2": 2.0, "alignment-inf": math.inf}


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _net(*widths: int, seed: int = 0) -> nn.Sequential:
    return relu_network(widths, generator=_generator(seed)).double()


def _with(*matrices: object) -> nn.Sequential:
    """A float64 chain with these weights and ReLU between, no head apart."""
    layers: list[nn.Module] = []
    for matrix in matrices:
        weight = torch.as_tensor(matrix, dtype=torch.float64)
        layer = nn.Linear(weight.shape[1], weight.shape[0]).double()
        layer.weight.data.copy_(weight)
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers)


class ConvNet(nn.Module):
    """Not a Sequential: two convolutions, two linear layers, a float64 copy of a small image network."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 3, 3)
        self.conv = nn.Conv2d(3, 4, 2)
        self.hidden = nn.Linear(4, 5)
        self.head = nn.Linear(5, 2)
        generator = _generator(3)
        for p in self.parameters():
            p.data = torch.randn(p.shape, generator=generator, dtype=torch.float64)


# ---------------------------------------------------------------- formulas


@pytest.mark.parametrize(
    ("penalty", "expected"),
    [
        (l1_penalty, 3 + 4 + 12 + 2 + 1),
        (group_lasso_penalty, 5 + 12 + 2 + 1),
        (row_sparsity_penalty, 17 / 13 + 3 / math.sqrt(5)),
        # (σ₁ + σ₂)² = tr G + 2 √det G with the Gram matrix G = [[153, −12], [−12, 16]]; the second layer has 2 and 1
        (nuclear_norm_penalty, math.sqrt(169 + 2 * math.sqrt(153 * 16 - 144)) + 3),
        (dispersion_penalty, 3.5**2 + 0.5**2),
    ],
)
def test_values_by_hand(penalty: Callable[..., torch.Tensor], expected: float) -> None:
    net = _with([[3, -4], [0, 0], [-12, 0]], [[0, 2, 0], [0, 0, -1]], [[1.0, 1.0]])
    net = net[:5]  # the last is the head
    assert penalty(net).item() == pytest.approx(expected, rel=1e-14)
    single = _with([[3, -4], [0, 0], [-12, 0]])
    with pytest.raises(InputError, match="exclude_head"):
        penalty(single)
    assert 0 < penalty(single, exclude_head=False).item() < expected


def test_row_sparsity_lies_between_one_and_the_root_of_the_rows() -> None:
    one, equal = _with([[0.0, 7.0], [0, 0], [0, 0], [0, 0]]), _with(np.eye(4))
    assert row_sparsity_penalty(one, exclude_head=False).item() == 1.0
    assert row_sparsity_penalty(equal, exclude_head=False).item() == pytest.approx(2.0, rel=1e-15)


def test_dispersion_takes_the_share_of_the_largest_rows() -> None:
    norms = np.arange(1.0, 101.0)
    net = _with(np.diag(norms)[np.random.default_rng(0).permutation(100)])
    for share, count in [(0.05, 5), (0.07, 7), (0.051, 6), (1.0, 100), (0.001, 2), (0.29, 29)]:
        value = dispersion_penalty(net, share=share, exclude_head=False).item()
        # 1, …, n have variance (n² − 1)/12
        assert value == pytest.approx((count**2 - 1) / 12, rel=1e-12), share
    assert dispersion_penalty(_with([[3.0, 4.0]]), exclude_head=False).item() == 0.0  # one row


@pytest.mark.parametrize("share", [0, -0.1, 1.01, math.nan, math.inf, True, "0.05", None])
def test_dispersion_refuses_other_shares(share: object) -> None:
    with pytest.raises(InputError, match="share"):
        dispersion_penalty(_net(3, 3, 2), share=share)  # type: ignore[arg-type]


def test_nuclear_and_alignment_act_on_products_and_the_others_on_factors() -> None:
    net = relu_network((6, 5, 4, 3), rank=2, generator=_generator()).double()
    dense = _with(net[1].weight @ net[0].weight, net[4].weight @ net[3].weight)
    for name in ("nuclear", *NORMS):
        expected = PENALTIES[name](dense, exclude_head=False).item()
        assert PENALTIES[name](net).item() == pytest.approx(expected, rel=1e-12), name
    factors = [net[i].weight for i in (0, 1, 3, 4)]
    assert l1_penalty(net).item() == pytest.approx(sum(float(w.detach().abs().sum()) for w in factors), rel=1e-12)
    rows = sum(float(w.detach().norm(dim=1).sum()) for w in factors)
    assert group_lasso_penalty(net).item() == pytest.approx(rows, rel=1e-12)


@pytest.mark.parametrize("name", ANY_MODULE)
def test_conv_filters_are_rows_and_the_first_convolution_is_left_out(name: str) -> None:
    net = ConvNet()
    filters, hidden = net.conv.weight.detach().reshape(4, 12), net.hidden.weight.detach()
    chain = _with(filters, hidden)
    expected = PENALTIES[name](chain, exclude_head=False).item()
    penalty = PENALTIES[name](net)
    assert penalty.item() == pytest.approx(expected, rel=1e-12)
    penalty.backward()
    assert net.stem.weight.grad is None and net.head.weight.grad is None
    assert net.conv.weight.grad is not None and net.conv.weight.grad.shape == (4, 3, 2, 2)
    with_head = PENALTIES[name](_with(filters, hidden, net.head.weight.detach()), exclude_head=False).item()
    assert PENALTIES[name](net, exclude_head=False).item() == pytest.approx(with_head, rel=1e-12)


# ---------------------------------------------------------------- gradients


@pytest.mark.parametrize("name", PENALTIES)
@pytest.mark.parametrize("widths", [(5, 4, 3, 2), (3, 6, 4, 5, 2), (4, 3, 2)])
def test_gradients_match_differences(name: str, widths: tuple[int, ...]) -> None:
    net = _net(*widths, seed=1)
    penalty = PENALTIES[name]
    value = penalty(net)
    assert value.ndim == 0 and value.dtype == torch.float64
    value.backward()
    step = 1e-6
    for i in range(0, len(net) - 1, 2):
        weight = net[i].weight
        for index in np.ndindex(*weight.shape):
            values = []
            for sign in (1, -1):
                with torch.no_grad():
                    old = weight[index].item()
                    weight[index] = old + sign * step
                    values.append(penalty(net).item())
                    weight[index] = old
            assert weight.grad is not None
            assert weight.grad[index].item() == pytest.approx((values[0] - values[1]) / (2 * step), abs=2e-8)
    assert net[-1].weight.grad is None and all(p.grad is None for n, p in net.named_parameters() if "bias" in n)


def test_gradients_of_the_decoupled_branch_match_differences() -> None:
    # nonnegative and negative rows: here ‖M‖_2 is the smallest of the three bounds for p = 2
    rng = np.random.default_rng(0)
    A = np.concatenate([rng.random((2, 3)), -rng.random((2, 3))]) + 0.1
    A[2:] -= 0.2
    net = _with(A, rng.random((3, 4)) + 0.1)
    closed = [_closed_form(net[2].weight, net[0].weight), _closed_form(net[0].weight.T, net[2].weight.T)]
    value = alignment_penalty(net, exclude_head=False)
    assert value.item() < min(closed) - 1e-3
    value.backward()
    step = 1e-6
    for index in np.ndindex(4, 3):
        sides = []
        for sign in (1, -1):
            moved = A.copy()
            moved[index] += sign * step
            sides.append(alignment_penalty(_with(moved, net[2].weight.detach()), exclude_head=False).item())
        assert net[0].weight.grad[index].item() == pytest.approx((sides[0] - sides[1]) / (2 * step), abs=2e-8)


def _closed_form(B: torch.Tensor, A: torch.Tensor) -> float:
    """By another route: λ_max of B (2I − A Aᵀ)^{-1} Bᵀ with an explicit inverse."""
    b, a = (w.detach().numpy() / np.linalg.norm(w.detach().numpy(), 2) for w in (B, A))
    return math.sqrt(np.linalg.eigvalsh(b @ np.linalg.inv(2 * np.eye(len(a)) - a @ a.T) @ b.T)[-1])


@pytest.mark.parametrize("name", PENALTIES)
def test_zero_layers_have_finite_values_and_gradients(name: str) -> None:
    net = _net(4, 5, 3, 3, 2)
    net[2].weight.data.zero_()
    net[0].weight.data[1] = 0.0  # and one zero row elsewhere
    value = PENALTIES[name](net)
    value.backward()
    grads = [net[i].weight.grad for i in (0, 2, 4)]
    assert math.isfinite(value.item()) and all(bool(g.isfinite().all()) for g in grads)
    assert not bool(grads[1].any())
    if name != "nuclear":  # a zero row's nuclear subgradient is that of the matrix
        assert not bool(grads[0][1].any())
    net[0].weight.data.zero_()
    net[4].weight.data.zero_()
    zero = PENALTIES[name](net)
    assert zero.item() == 0.0
    zero.backward()


# ---------------------------------------------------------------- scaling


@pytest.mark.parametrize("name", PENALTIES)
@pytest.mark.parametrize("factor", [3.0, 0.125])
def test_homogeneity(name: str, factor: float) -> None:
    degree = {"l1": 1, "nuclear": 1, "group-lasso": 1, "dispersion": 2}.get(name, 0)
    net = _net(5, 4, 6, 3)
    before = PENALTIES[name](net).item()
    for layer in (net[0], net[2]):
        layer.weight.data.mul_(factor)
    assert PENALTIES[name](net).item() == pytest.approx(before * factor**degree, rel=1e-12)


@pytest.mark.parametrize(
    ("name", "scale"),
    [(name, scale) for name in PENALTIES for scale in (1e-30, 1e30) if (name, scale) != ("dispersion", 1e30)],
)  # a variance of 1e60 is no float32
def test_extreme_scales_in_float32(name: str, scale: float) -> None:
    """Squares of these over- and underflow in float32."""
    net = relu_network((5, 4, 6, 3), generator=_generator())
    degree = {"l1": 1, "nuclear": 1, "group-lasso": 1}.get(name, 0)
    before = PENALTIES[name](net).item()
    for layer in (net[0], net[2]):
        layer.weight.data.mul_(scale)
    value = PENALTIES[name](net)
    value.backward()
    assert bool(net[0].weight.grad.isfinite().all()) and bool(net[2].weight.grad.isfinite().all())
    if name != "dispersion":
        assert value.item() == pytest.approx(before * scale**degree, rel=1e-5)
        assert bool(net[0].weight.grad.any())


def test_row_and_frobenius_norms_neither_over_nor_underflow() -> None:
    matrix = torch.tensor([[3e-30, 4e-30], [3e25, -4e25], [0.0, 0.0]], requires_grad=True)
    norms = row_norms(matrix)
    assert norms.tolist() == pytest.approx([5e-30, 5e25, 0.0], rel=1e-6, abs=0.0)
    (gradient,) = torch.autograd.grad(norms.sum(), matrix)
    torch.testing.assert_close(gradient, torch.tensor([[0.6, 0.8], [0.6, -0.8], [0.0, 0.0]]))
    assert frobenius_norm(matrix).item() == pytest.approx(5e25, rel=1e-6)


# ---------------------------------------------------------------- alignment


def _by_enumeration(B: np.ndarray, A: np.ndarray, norm: float) -> float:
    """``max ‖B D A‖ / (‖B‖ ‖A‖)`` over all 0/1 diagonals."""
    order = 2 if norm == 2 else np.inf
    patterns = itertools.product((0.0, 1.0), repeat=len(A))
    top = max(np.linalg.norm((B * np.array(d)) @ A, order) for d in patterns)
    return float(top / (np.linalg.norm(B, order) * np.linalg.norm(A, order)))


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("kind", ["gaussian", "integer", "sparse", "low-rank", "positive", "spread"])
def test_alignment_is_an_upper_bound_of_every_pattern(name: str, kind: str) -> None:
    rng = np.random.default_rng(0)
    for _ in range(25):
        p, h, n = rng.integers(1, 7, size=3)
        B, A = rng.standard_normal((p, h)), rng.standard_normal((h, n))
        if kind == "integer":
            B, A = np.sign(B) * (1.0 + (abs(B) > 1)), np.sign(A)
        elif kind == "sparse":
            B, A = B * (rng.random(B.shape) < 0.5), A * (rng.random(A.shape) < 0.5)
        elif kind == "low-rank":
            B, A = np.outer(B[:, 0], B[0]), np.outer(A[:, 0], A[0])
        elif kind == "positive":
            B, A = abs(B), A * np.sign(A[:, :1])
        elif kind == "spread":
            A = A * 10.0 ** rng.integers(-6, 6, size=(h, 1))
        if not (B.any() and A.any()):
            continue
        exact = _by_enumeration(B, A, NORMS[name])
        bound = PENALTIES[name](_with(A, B), exclude_head=False).item()
        assert exact <= bound * (1 + 1e-12) and bound <= 1 + 1e-12
        # the library's own A_p is the same enumeration
        assert alignment_pair(B, A, norm=NORMS[name]).value == pytest.approx(min(exact, 1.0), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("name", NORMS)
def test_alignment_is_exact_where_its_bounds_are(name: str) -> None:
    absolute = _with([[1.0], [-1.0]], [[1.0, 1.0]])  # |x|: every pattern gives at most 1, the product 2
    assert PENALTIES[name](absolute, exclude_head=False).item() == pytest.approx(0.5, rel=1e-12)
    aligned = _with([[2.0, 0.0], [0.0, 1.0]], [[3.0, 0.0], [0.0, 1.0]])
    assert PENALTIES[name](aligned, exclude_head=False).item() == pytest.approx(1.0, rel=1e-12)
    crossed = _with([[2.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 3.0]])  # max(2·1, 1·3) of 2·3
    assert PENALTIES[name](crossed, exclude_head=False).item() == pytest.approx(0.5, rel=1e-12)
    apart = _with([[1.0, 2.0], [0.0, 0.0]], [[0.0, 3.0]])  # no path through the hidden layer
    assert PENALTIES[name](apart, exclude_head=False).item() == 0.0


@pytest.mark.parametrize("name", NORMS)
def test_alignment_bounds_are_the_sharpest_of_their_formulas(name: str) -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        B, A = rng.standard_normal((3, 5)), rng.standard_normal((5, 4))
        M = np.maximum(*(np.einsum("imj->ij", np.maximum(s * B[:, :, None] * A[None], 0)) for s in (1, -1)))
        if name == "alignment-inf":
            expected = M.sum(1).max() / (abs(B).sum(1).max() * abs(A).sum(1).max())
        else:
            b, a = torch.tensor(B), torch.tensor(A)
            decoupled = np.linalg.norm(M, 2) / (np.linalg.norm(B, 2) * np.linalg.norm(A, 2))
            expected = min(_closed_form(b, a), _closed_form(a.T, b.T), decoupled)
        assert PENALTIES[name](_with(A, B), exclude_head=False).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", NORMS)
def test_alignment_is_the_mean_over_encoder_pairs(name: str) -> None:
    net = _net(5, 4, 6, 3, 2)
    w = [net[i].weight.detach() for i in (0, 2, 4, 6)]
    pairs = [PENALTIES[name](_with(w[i], w[i + 1]), exclude_head=False).item() for i in range(3)]
    assert PENALTIES[name](net).item() == pytest.approx(np.mean(pairs[:2]), rel=1e-12)
    assert PENALTIES[name](net, exclude_head=False).item() == pytest.approx(np.mean(pairs), rel=1e-12)
    alone = PENALTIES[name](_net(5, 4, 2))
    assert alone.item() == 0.0
    alone.backward()  # it may be the only term of a loss
    with pytest.raises(InputError, match="exclude_head"):
        PENALTIES[name](_net(5, 4))


@pytest.mark.parametrize("name", NORMS)
def test_descent_lowers_the_exact_alignment(name: str) -> None:
    rng = np.random.default_rng(2)
    net = _with(rng.standard_normal((6, 4)), rng.standard_normal((4, 6)))

    def exact() -> float:
        return _by_enumeration(net[2].weight.detach().numpy(), net[0].weight.detach().numpy(), NORMS[name])

    before = exact()
    optimiser = torch.optim.Adam([net[0].weight, net[2].weight], lr=0.02)
    for _ in range(200):
        optimiser.zero_grad()
        alignment_penalty(net, norm=NORMS[name], exclude_head=False).backward()
        optimiser.step()
    assert exact() < 0.9 * before


def test_alignment_reads_one_shared_activation_as_many() -> None:
    relu = nn.ReLU()
    net = _with(*(np.random.default_rng(i).standard_normal((3, 3)) for i in range(3)))
    shared = nn.Sequential(net[0], relu, net[2], relu, net[4])
    assert alignment_penalty(shared).item() == alignment_penalty(net[:5]).item() > 0


@pytest.mark.parametrize("layer", [nn.LeakyReLU(0.1), nn.Tanh(), nn.Sigmoid(), nn.Hardtanh(), nn.ReLU6()])
def test_alignment_takes_slopes_in_0_1(layer: nn.Module) -> None:
    net = _net(4, 4, 3, 2)
    other = nn.Sequential(net[0], layer, nn.Dropout(), net[2], layer, net[4], nn.Softmax(dim=1))
    assert alignment_penalty(other).item() == alignment_penalty(net).item()


@pytest.mark.parametrize(
    "layer", [nn.BatchNorm1d(4), nn.GELU(), nn.LeakyReLU(1.5), nn.LeakyReLU(-0.1), nn.Softmax(dim=1), nn.LayerNorm(4)]
)
def test_alignment_refuses_other_layers_between(layer: nn.Module) -> None:
    net = _net(4, 4, 3, 2)
    with pytest.raises(UnsupportedLayerError, match=rf"^module\.1: got a {type(layer).__name__}"):
        alignment_penalty(nn.Sequential(net[0], layer, net[2], net[3], net[4]))
    before = nn.Sequential(layer, *net)  # before the first linear layer it does not matter
    assert alignment_penalty(before).item() == alignment_penalty(net).item()


def test_alignment_refuses_what_is_no_chain() -> None:
    with pytest.raises(UnsupportedLayerError, match="ConvNet"):
        alignment_penalty(ConvNet())
    with pytest.raises(InputError, match="3 inputs after 4 outputs"):
        alignment_penalty(nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(3, 2)), exclude_head=False)
    for norm in (1, 3, "one", None, True):
        with pytest.raises(InputError, match="norm"):
            alignment_penalty(_net(3, 3, 3, 2), norm=norm)


# ---------------------------------------------------------------- proximal steps


def _objective(name: str, X: np.ndarray, W: np.ndarray, tau: float) -> float:
    penalty = {
        "l1": lambda: abs(X).sum(),
        "group-lasso": lambda: np.linalg.norm(X, axis=1).sum(),
        "nuclear": lambda: np.linalg.norm(X, ord="nuc"),
    }[name]()
    return float(0.5 * ((X - W) ** 2).sum() + tau * penalty)


@pytest.mark.parametrize("name", PROXIMAL_STEPS)
@pytest.mark.parametrize("tau", [0.05, 0.7, 2.0])
def test_proximal_steps_minimise_their_objective(name: str, tau: float) -> None:
    net = _net(6, 4, 5, 3)
    olds = [net[i].weight.detach().numpy().copy() for i in (0, 2)]
    PROXIMAL_STEPS[name](net, tau)
    rng = np.random.default_rng(0)
    for W, i in zip(olds, (0, 2), strict=True):
        X = net[i].weight.detach().numpy()
        best = _objective(name, X, W, tau)
        directions = [rng.standard_normal(X.shape) for _ in range(20)]
        # towards W, towards 0, and within the support, where random directions hardly go
        directions += [W - X, -X, X, directions[0] * (X != 0), directions[1] * (X.any(axis=1))[:, None]]
        for direction in directions:
            for scale in (1e-5, 1e-3, 1e-1, 1.0):
                assert _objective(name, X + scale * direction, W, tau) >= best - 1e-13


@pytest.mark.parametrize("name", PROXIMAL_STEPS)
def test_proximal_steps_meet_the_optimality_condition(name: str) -> None:
    """``(W − X)/τ`` is a subgradient at X: its dual norm is at most 1 and its product with X is the penalty."""
    tau = 0.6
    net = _net(6, 4, 3, 2)
    W = net[0].weight.detach().numpy().copy()
    PROXIMAL_STEPS[name](net, tau)
    X = net[0].weight.detach().numpy()
    G = (W - X) / tau
    dual = {
        "l1": abs(G).max(),
        "group-lasso": np.linalg.norm(G, axis=1).max(),
        "nuclear": np.linalg.norm(G, 2),
    }[name]
    penalty = _objective(name, X, X, 1.0)
    assert dual <= 1 + 1e-12 and (G * X).sum() == pytest.approx(penalty, rel=1e-12) and penalty > 0


def test_proximal_maps_make_exact_zeros() -> None:
    net = _with([[3.0, -0.5], [0.3, 0.4]])
    l1_proximal_step(net, 0.4, exclude_head=False)
    np.testing.assert_allclose(net[0].weight.detach().numpy(), [[2.6, -0.1], [0.0, 0.0]], atol=1e-15)
    assert net[0].weight[1].tolist() == [0.0, 0.0]
    net = _with([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]])
    group_lasso_proximal_step(net, 0.5, exclude_head=False)
    np.testing.assert_allclose(net[0].weight.detach().numpy(), [[2.7, 3.6], [0, 0], [0, 0]], atol=1e-15)
    assert not net[0].weight[1:].detach().any()
    rows = torch.tensor([[3e-30, 4e-30], [1.0, 0.0]])
    torch.testing.assert_close(shrink_rows(rows, 1e-30)[0], torch.tensor([2.4e-30, 3.2e-30]), rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("name", PROXIMAL_STEPS)
def test_threshold_zero_changes_nothing_and_a_large_one_zeroes_the_encoder(name: str) -> None:
    net = _net(4, 5, 3)
    before = [p.detach().clone() for p in net.parameters()]
    PROXIMAL_STEPS[name](net, 0)
    for p, old in zip(net.parameters(), before, strict=True):
        torch.testing.assert_close(p.detach(), old, rtol=1e-12, atol=1e-14)
    PROXIMAL_STEPS[name](net, 1e3)
    assert not net[0].weight.detach().any()
    assert torch.equal(net[2].weight, before[2]) and torch.equal(net[0].bias, before[1])
    PROXIMAL_STEPS[name](net, 1e3, exclude_head=False)
    assert not net[2].weight.detach().any()
    assert net[0].weight.requires_grad and net[0].weight.grad_fn is None


@pytest.mark.parametrize("name", PROXIMAL_STEPS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_proximal_steps_shrink_filters_in_place(name: str, layout: torch.memory_format) -> None:
    net = ConvNet().to(memory_format=layout)
    stem, head = net.stem.weight.detach().clone(), net.head.weight.detach().clone()
    parameter, old = net.conv.weight, as_matrix(net.conv.weight.detach()).clone()
    PROXIMAL_STEPS[name](net, 0.8)
    assert net.conv.weight is parameter
    expected = {
        "l1": lambda: torch.sign(old) * (old.abs() - 0.8).clamp_min(0),
        "group-lasso": lambda: shrink_rows(old, 0.8),
        "nuclear": lambda: shrink_singular_values(old, 0.8),
    }[name]()
    torch.testing.assert_close(as_matrix(parameter.detach()), expected, rtol=1e-12, atol=1e-14)
    assert torch.equal(net.stem.weight, stem) and torch.equal(net.head.weight, head)


def test_nuclear_step_refuses_products_but_leaves_a_factorised_head_alone() -> None:
    with pytest.raises(UnsupportedLayerError, match=r"2 nn\.Linear \(0\.weight, 1\.weight\)"):
        nuclear_norm_proximal_step(relu_network((5, 4, 3), rank=2, generator=_generator()), 0.1)
    tail = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2), nn.Linear(2, 3))
    factor = tail[2].weight.detach().clone()
    nuclear_norm_proximal_step(tail, 1e3)
    assert torch.equal(tail[2].weight, factor) and not tail[0].weight.detach().any()


@pytest.mark.parametrize("name", PROXIMAL_STEPS)
def test_frozen_weights_are_left_alone(name: str) -> None:
    net = _net(4, 4, 3, 2)
    net[0].weight.requires_grad_(False)
    frozen = net[0].weight.clone()
    PROXIMAL_STEPS[name](net, 1e3)
    assert torch.equal(net[0].weight, frozen) and not net[2].weight.detach().any()
    net.requires_grad_(False)
    with pytest.raises(InputError, match="all frozen"):
        PROXIMAL_STEPS[name](net, 0.1)


@pytest.mark.parametrize("name", PROXIMAL_STEPS)
@pytest.mark.parametrize("threshold", [-1e-9, math.nan, math.inf, True, "1", None])
def test_bad_thresholds_are_refused(name: str, threshold: object) -> None:
    net = _net(4, 4, 3)
    before = net[0].weight.detach().clone()
    with pytest.raises(InputError, match="threshold"):
        PROXIMAL_STEPS[name](net, threshold)
    assert torch.equal(net[0].weight, before)
    for shrink in (shrink_rows, shrink_singular_values):
        with pytest.raises(InputError, match="threshold"):
            shrink(before, threshold)  # type: ignore[arg-type]


# ---------------------------------------------------------------- input


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_refused_by_name(value: float) -> None:
    net = _net(4, 4, 3, 2)
    net[2].weight.data[1, 1] = value
    before = net[0].weight.detach().clone()
    for penalty in PENALTIES.values():
        with pytest.raises(InputError, match=r"2\.weight: got NaN or infinite"):
            penalty(net)
    for step in PROXIMAL_STEPS.values():
        with pytest.raises(InputError, match=r"2\.weight: got NaN or infinite"):
            step(net, 0.1)
    assert torch.equal(net[0].weight, before)  # nothing was changed before the refusal
    for shrink in (shrink_rows, shrink_singular_values):
        with pytest.raises(InputError, match="NaN or infinite"):
            shrink(net[2].weight.detach(), 0.1)
        for shape in ((2, 2, 2), (2,), (0, 3)):
            with pytest.raises(InputError, match="needed a matrix"):
                shrink(torch.zeros(shape), 0.1)


@pytest.mark.parametrize("module", [nn.Sequential(nn.ReLU()), [[1.0, 2.0]], None])
def test_modules_without_weights_are_refused(module: object) -> None:
    for penalty in PENALTIES.values():
        with pytest.raises(InputError, match="module"):
            penalty(module)
    for step in PROXIMAL_STEPS.values():
        with pytest.raises(InputError, match="module"):
            step(module, 0.1)


def test_every_step_belongs_to_a_penalty_and_no_random_state_is_drawn() -> None:
    assert set(PROXIMAL_STEPS) < set(PENALTIES) == {*ANY_MODULE, *NORMS}
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    net = _net(4, 4, 3, 2)
    for penalty in PENALTIES.values():
        penalty(net)
    for step in PROXIMAL_STEPS.values():
        step(net, 0.01)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert list(weight_parameters(net)) == ["0.weight", "2.weight"]


def test_missing_torch_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    net = _net(4, 4, 3)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'certbound\[torch\]'"):
        l1_penalty(net)
