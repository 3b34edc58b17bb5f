"""The constants of graphs: never below difference quotients and Jacobians, exact where the answer is known."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from graph_cases import KINDS, Builder, jacobian, matrix_norm, quotient, random_graph, transformer
from hypothesis import given, settings
from hypothesis import strategies as st
from tamper import every_flip_refused

import certbound
from certbound.activations import Activation
from certbound.certificate import load_certificate
from certbound.errors import CertificateError, InputError, UnsupportedLayerError
from certbound.graph import Graph, Node
from certbound.lipschitz.graph_pieces import Branch, ConvPiece, Proof, conv_piece, summed_convolution, summed_matrix
from certbound.lipschitz.graph_product import GraphProductCertificate, Reader, graph_product, root_of_squares
from certbound.lipschitz.product import lipschitz_product
from certbound.norms.blocks import Factors
from certbound.ops import (
    Add,
    BatchNorm,
    Concat,
    Constant,
    Conv,
    Gather,
    Input,
    LayerNorm,
    Linear,
    MatMul,
    Multiply,
    Permute,
    Pointwise,
    Reshape,
    Scale,
    Slice,
)
from certbound.types import GLOBAL, Quantity, Rigor, Sense

NORMS = (2.0, math.inf)
RELU = Pointwise(Activation("relu"))


def chain(shape, *ops):
    return Graph((Node(Input(shape)), *(Node(op, (i,)) for i, op in enumerate(ops))))


def dense(graph, x):
    """The matrix of an affine graph, exactly where sums are exact."""
    n = graph.n_inputs
    zero = graph.forward(np.zeros((1, n)))
    return (graph.forward(np.eye(n)) - zero).T


# ---------------------------------------------------------------- soundness


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(KINDS), min_size=1, max_size=5), st.integers(0, 2**20), st.sampled_from(NORMS))
def test_never_below_jacobians_and_quotients(kinds, seed, norm):
    graph = random_graph(kinds, seed)
    rng = np.random.default_rng(seed)
    for outputs in ("all", 1, (0, 2)):
        bound = graph_product(graph, norm, outputs)
        for _ in range(3):
            x = rng.standard_normal(graph.n_inputs) * rng.choice([0.1, 1.0, 10.0])
            J = jacobian(graph, x)
            rows = J if outputs == "all" else J[[1]] if outputs == 1 else J[[0]] - J[[2]]
            assert matrix_norm(rows, norm) <= bound.value * (1 + 1e-9)
            if outputs == "all":
                y = x + rng.standard_normal(graph.n_inputs) * 10.0 ** rng.integers(-3, 2)
                assert quotient(graph, x, y, norm) <= bound.value * (1 + 1e-9)
        assert bound.rigor is Rigor.RIGOROUS
        assert bound.certificate.verify(graph)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.sampled_from(["conv", "bn", "linear residual", "branches", "scale", "group", "pad", "roll", "gather"]),
             min_size=1, max_size=2),
    st.integers(0, 2**20),
)  # fmt: skip
def test_one_linear_block_is_close_to_its_matrix(kinds, seed):
    """Without a head a single linear map is bounded by (about) its own norm, not by a product."""
    b = Builder((2, 5, 4), seed)
    b.block(kinds[0])
    graph = b.graph()
    for norm in NORMS:
        exact = matrix_norm(dense(graph, None), norm)
        value = graph_product(graph, norm, tier="tight").value
        assert exact <= value * (1 + 1e-12)
        assert value <= exact * 1.02 + 1e-12, (kinds[0], norm)


# ---------------------------------------------------------------- known values


@pytest.mark.parametrize("norm", NORMS)
def test_a_residual_block_has_one_plus_the_norm_of_its_branch(norm):
    graph = Graph((
        Node(Input((1, 3))), Node(Linear(2.0 * np.eye(3)), (0,)), Node(RELU, (1,)), Node(Linear(3.0 * np.eye(3)), (2,)),
        Node(Add(), (0, 3)), Node(Linear(5.0 * np.eye(3)), (4,)), Node(RELU, (5,)), Node(Add(), (4, 6)),
    ))  # fmt: skip
    assert graph_product(graph, norm).value == pytest.approx((1 + 6) * (1 + 5), rel=1e-12)


@pytest.mark.parametrize("norm", NORMS)
def test_batch_norm_is_one_map_with_its_convolution(norm):
    # the channel with the large kernel has the small scale: the product of the two norms is 10, the map's norm 1
    conv = Conv(np.array([[[10.0]], [[1.0]]]))
    graph = chain((1, 1, 4), conv, BatchNorm([0.0, 0.0], [1.0, 1.0], 0.0, [0.1, 1.0]))
    assert graph_product(graph, norm).value == pytest.approx(math.sqrt(2.0) if norm == 2.0 else 1.0, rel=1e-6)


def test_factors_before_a_layer_are_folded_too():
    graph = chain((1, 2, 4), Scale(np.array([[[10.0], [1.0]]]), divides=True), Conv(np.array([[[10.0], [1.0]]])))
    assert graph_product(graph, math.inf).value == pytest.approx(2.0, rel=1e-12)
    graph = chain((1, 3, 2), Scale(np.array([[10.0, 1.0]])), Linear([[0.1, 1.0]]))
    assert graph_product(graph, math.inf).value == pytest.approx(2.0, rel=1e-12)


def test_factors_that_differ_within_a_channel_are_not_folded():
    factor = np.array([[[1.0, 5.0]]])
    graph = chain((1, 1, 2), Scale(factor), Conv(np.array([[[1.0]]])))
    assert graph_product(graph, math.inf).value == pytest.approx(5.0, rel=1e-9)


def test_layer_norm_weights_are_folded_into_the_linear_layer():
    norm = LayerNorm(1, 0.25, np.array([10.0, 1.0, 1.0]))
    graph = chain((1, 2, 3), norm, Linear([[0.2, 0.0, 0.0], [0.0, 1.0, 0.0]]))
    assert graph_product(graph, 2).value == pytest.approx(4.0, rel=1e-9)  # 1/√0.25 times ‖W diag(γ)‖ = 2


@pytest.mark.parametrize(("norm", "value"), [(2.0, math.sqrt(3.0)), (math.inf, 1.0)])
def test_concatenation_of_a_value_with_itself(norm, value):
    graph = Graph((Node(Input((1, 4))), Node(Concat(1), (0, 0, 0))))
    assert graph_product(graph, norm).value == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("norm", NORMS)
def test_slices_put_together_again_are_a_permutation(norm):
    graph = Graph((
        Node(Input((1, 5))), Node(Slice(1, 0, 5, 2), (0,)), Node(Slice(1, 1, 5, 2), (0,)), Node(Concat(1), (1, 2)),
    ))  # fmt: skip
    assert graph_product(graph, norm).value == 1.0


def test_gathered_copies_count():
    assert graph_product(chain((1, 3), Gather(1, (0, 0, 1, 0, 2))), 2).value == pytest.approx(math.sqrt(3.0), rel=1e-12)


def test_concatenation_of_different_values():
    graph = Graph((
        Node(Input((1, 2))), Node(Linear(3.0 * np.eye(2)), (0,)), Node(Linear(4.0 * np.eye(2)), (0,)),
        Node(Concat(1), (1, 2)),
    ))  # fmt: skip
    assert graph_product(graph, 2).value == pytest.approx(5.0, rel=1e-12)
    assert graph_product(graph, math.inf).value == pytest.approx(4.0, rel=1e-12)


@pytest.mark.parametrize("norm", NORMS)
def test_a_sum_of_linear_branches_is_one_map(norm):
    rng = np.random.default_rng(3)
    W = rng.standard_normal((4, 4))
    graph = Graph((Node(Input((1, 4))), Node(Linear(W), (0,)), Node(Add(subtracts=True), (0, 1))))
    assert graph_product(graph, norm).value == pytest.approx(matrix_norm(np.eye(4) - W, norm), rel=1e-9)
    cancelled = Graph((Node(Input((1, 4))), Node(Linear(W), (0,)), Node(Linear(W), (0,)), Node(Add(True), (1, 2))))
    assert graph_product(cancelled, norm).value < 1e-13


def test_summed_convolutions_equal_the_sum():
    rng = np.random.default_rng(5)
    one = Conv(rng.standard_normal((2, 2, 3, 3)), None, (2, 2), ((1, 1), (1, 1)))
    two = Conv(rng.standard_normal((2, 2, 1, 1)), None, (2, 2))
    x = rng.standard_normal((1, 2, 7, 6))
    out = one.output_shape(x.shape)
    piece = summed_convolution([Branch(False, one), Branch(True, two)], x.shape, out)
    np.testing.assert_allclose(piece.conv.apply(x), one.apply(x) - two.apply(x), atol=1e-13)
    # a mode or a dilation that does not fit is left to the sum of norms
    wide = replace(one, dilation=(2, 2))
    assert summed_convolution([Branch(False, wide), Branch(False, two)], x.shape, out) is None
    assert summed_matrix([Branch(False), Branch(False)], 4) is None


def test_constants_do_not_count():
    graph = Graph((
        Node(Input((1, 2))), Node(Constant(np.full((1, 2), 7.0))), Node(Add(), (0, 1)), Node(Concat(1), (2, 1)),
    ))  # fmt: skip
    assert graph_product(graph, 2).value == 1.0


def test_products_with_stored_constants():
    A = np.array([[[3.0, 0.0], [0.0, 1.0]]])
    for order in ((1, 0), (0, 1)):
        graph = Graph((Node(Input((1, 2, 2))), Node(Constant(A)), Node(MatMul(), order)))
        assert graph_product(graph, 2).value == pytest.approx(3.0, rel=1e-12)
        assert graph_product(graph, math.inf).value == pytest.approx(3.0, rel=1e-12)
    skew = np.array([[[1.0, 1.0], [0.0, 0.0]]])  # row sums 2, column sums 1
    left = Graph((Node(Input((1, 2, 2))), Node(Constant(skew)), Node(MatMul(), (1, 0))))
    right = Graph((Node(Input((1, 2, 2))), Node(Constant(skew)), Node(MatMul(), (0, 1))))
    assert (graph_product(left, math.inf).value, graph_product(right, math.inf).value) == (2.0, 1.0)
    elementwise = Graph((Node(Input((1, 2, 2))), Node(Constant(-4.0 * A)), Node(Multiply(), (0, 1))))
    assert graph_product(elementwise, 2).value == 12.0


def test_rows_of_a_linear_and_of_a_convolutional_head():
    W = np.array([[3.0, 4.0], [0.0, 5.0]])
    graph = chain((1, 2), Linear(W), Reshape((2, 1)))
    assert graph_product(graph, 2, 0).value == pytest.approx(5.0)
    assert graph_product(graph, 2, (0, 1)).value == pytest.approx(math.sqrt(10.0))
    assert graph_product(graph, math.inf, (0, 1)).value == pytest.approx(4.0)
    conv = chain((1, 1, 3), Conv(np.array([[[3.0, 4.0]], [[1.0, 0.0]]])))  # outputs 0, 1: channel 0; 2, 3: channel 1
    assert graph_product(conv, 2, 1).value == pytest.approx(5.0)
    assert graph_product(conv, 2, (1, 3)).value == pytest.approx(math.sqrt(20.0))
    grouped = chain((1, 2, 3), Conv(np.ones((2, 1, 1)), groups=2))  # equal kernels on different channels
    assert graph_product(grouped, 2, (0, 3)).value == pytest.approx(math.sqrt(2.0))
    doubled = chain((1, 1, 3), Conv(np.ones((1, 1, 2)), padding=((1, 0),), padding_mode="replicate"))
    assert graph_product(doubled, 2, 0).value >= 2.0  # both taps read the first pixel
    relu = chain((1, 2), Linear(W), RELU)
    assert graph_product(relu, math.inf, (0, 1)).value == pytest.approx(7.0 + 5.0)
    same = Graph((Node(Input((1, 2))), Node(Concat(1), (0, 0))))
    assert graph_product(same, 2, (0, 2)).value == 0.0


@pytest.mark.parametrize("norm", NORMS)
def test_what_forks_costs_nothing_extra(norm):
    """L(join) = L(fork) · L(block): multiplying what comes before multiplies the bound, to rounding."""
    rng = np.random.default_rng(1)
    body = random_graph(["residual", "relu", "concat"], 7)
    before = Conv(rng.standard_normal((2, 2, 1, 1)))
    nodes = [Node(Input((1, 2, 5, 4))), Node(before, (0,)), Node(RELU, (1,))]
    nodes += [Node(n.op, tuple(j + 2 for j in n.inputs), n.name) for n in body.nodes[1:]]
    first = graph_product(Graph((Node(Input((1, 2, 5, 4))), Node(before, (0,)))), norm).value
    together = graph_product(Graph(tuple(nodes)), norm).value
    assert together == pytest.approx(first * graph_product(body, norm).value, rel=1e-9)


# ---------------------------------------------------------------- metamorphic


@pytest.mark.parametrize("norm", NORMS)
def test_scaling_a_layer_scales_the_bound(norm):
    graph = random_graph(["bn", "relu", "maxpool"], 11)
    head = graph.nodes[-1]
    scaled = Graph((*graph.nodes[:-1], replace(head, op=Linear(4.0 * head.op.weight, head.op.bias))))
    assert graph_product(scaled, norm).value == pytest.approx(4.0 * graph_product(graph, norm).value, rel=1e-9)


@pytest.mark.parametrize("norm", NORMS)
def test_permuting_channels_changes_nothing(norm):
    rng = np.random.default_rng(2)
    one, two = rng.standard_normal((4, 2, 3, 3)), rng.standard_normal((3, 4, 3, 3))
    bn = BatchNorm(rng.standard_normal(4), rng.random(4) + 0.1, 1e-5, rng.standard_normal(4), rng.standard_normal(4))
    order = rng.permutation(4)
    moved = BatchNorm(bn.mean[order], bn.variance[order], bn.eps, bn.weight[order])
    plain = chain((1, 2, 6, 6), Conv(one), bn, RELU, Conv(two))
    other = chain((1, 2, 6, 6), Conv(one[order]), moved, RELU, Conv(two[:, order]))
    assert graph_product(other, norm).value == pytest.approx(graph_product(plain, norm).value, rel=1e-6)


def test_a_network_of_dense_layers_has_the_product_of_norms():
    rng = np.random.default_rng(8)
    weights = [rng.standard_normal((5, 4)), rng.standard_normal((3, 5))]
    graph = chain((1, 4), Linear(weights[0]), RELU, Linear(weights[1]))
    for norm in NORMS:
        assert graph_product(graph, norm).value == pytest.approx(lipschitz_product(weights, norm).value, rel=1e-12)


# ---------------------------------------------------------------- folding errors


def test_folded_kernels_enclose_the_exact_product():
    from fractions import Fraction

    rng = np.random.default_rng(4)
    conv = Conv(rng.standard_normal((4, 1, 3)), groups=2, padding=((1, 1),))
    rows = Factors(np.array([1 / 3] * 4), np.full(4, np.nextafter(1 / 3, 0)), np.full(4, np.nextafter(1 / 3, 1)))
    columns = Factors.exact(np.array([0.1, 0.7]))
    piece = conv_piece(conv, (1, 2, 6), rows, columns)
    for o in range(4):
        for t in range(3):
            exact = Fraction(1, 3) * Fraction(conv.weight[o, 0, t]) * Fraction(float(columns.value[o // 2]))
            off = abs(exact - Fraction(float(piece.conv.weight[o, 0, t])))
            assert off <= Fraction(float(piece.error[o, 0, t]))
            assert float(piece.error[o, 0, t]) < 1e-15


def test_errors_far_off_are_added():
    conv = Conv(np.zeros((1, 1, 3)), padding=((1, 1),))
    exact = ConvPiece(conv, (1, 5))
    off = ConvPiece(conv, (1, 5), np.full((1, 1, 3), 2.0))
    assert exact.prove(2.0, "fast").value < 1e-9
    assert off.prove(2.0, "fast").value == pytest.approx(6.0)
    assert off.proves(2.0, off.prove(2.0, "fast"))
    assert not off.proves(2.0, replace(off.prove(2.0, "fast"), value=5.9))


def test_overflow_gives_infinity():
    big = chain((1, 1, 2), Conv(np.full((1, 1, 1), 1e300)), BatchNorm([0.0], [0.0], 1e-300, [1e300]))
    bound = graph_product(big, 2)
    assert bound.value == math.inf
    assert bound.certificate.verify(big)


# ---------------------------------------------------------------- refusals


def test_attention_is_refused_by_name():
    graph = transformer(0)
    with pytest.raises(UnsupportedLayerError, match=r"MatMul.*both depend on the input.*2006\.04710.*lipschitz_local"):
        graph_product(graph, 2)
    square = Graph((Node(Input((1, 2))), Node(Multiply(), (0, 0), "blocks.3.gate")))
    with pytest.raises(UnsupportedLayerError, match=r"blocks\.3\.gate \(Multiply\)"):
        graph_product(square, 2)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [({"norm": 3}, "norm"), ({"outputs": 9}, "outputs"), ({"outputs": (1, 1)}, "outputs"), ({"tier": "quick"}, "tier")],
)
def test_bad_arguments_are_refused(arguments, name):
    graph = chain((1, 1, 4), Conv(np.ones((3, 1, 4))))
    with pytest.raises(InputError, match=name):
        graph_product(graph, **arguments)


# ---------------------------------------------------------------- certificates


def test_certificates_are_saved_and_every_byte_counts(tmp_path):
    graph = chain((1, 1, 4), Conv(np.array([[[0.5, 1.0]]]), padding=((1, 0),)), RELU, Reshape((1, 4)),
                  Linear(np.array([[1.0, 2.0, 0.0, 1.0]])))  # fmt: skip
    every_flip_refused(graph_product(graph, 2).certificate, graph, tmp_path)


def test_forged_certificates_are_refused(tmp_path):
    graph = random_graph(["bn", "relu", "avgpool"], 3)
    for norm in NORMS:
        good = graph_product(graph, norm).certificate
        assert load_certificate(good.save(tmp_path / "c")).verify(graph)
        assert good.bound.claim.quantity is Quantity.LIPSCHITZ
        assert (good.bound.claim.subject, good.bound.claim.domain) == (graph.digest, GLOBAL)
        assert good.bound.sense is Sense.UPPER
        proofs = list(good.proofs)
        forged = [
            replace(good, value=good.value * (1 - 1e-6)),
            replace(good, proofs=tuple(proofs[:-1])),
            replace(good, proofs=(*proofs, Proof(1.0))),
            replace(good, norm=1.0),
            replace(good, outputs=7),
            replace(good, subject="0" * 16),
        ]
        for k, proof in enumerate(proofs):
            lower = [*proofs]
            lower[k] = replace(proof, value=proof.value * 0.9)
            forged.append(replace(good, proofs=tuple(lower), value=good.value))
        for certificate in forged:
            with pytest.raises(CertificateError):
                certificate.verify(graph)


def test_a_certificate_is_about_its_graph():
    one, two = random_graph(["bn"], 1), random_graph(["bn"], 2)
    with pytest.raises(CertificateError, match="it is about"):
        graph_product(one, 2).certificate.verify(two)


def test_malformed_fields_are_refused():
    from certbound.certificate import Stored

    graph = random_graph(["conv"], 1)
    good = graph_product(graph, 2).certificate
    stored = good.stored()
    wrong = [("input_shape", [-3]), ("input_shape", [2.0])]
    wrong += [("proofs", x) for x in ([1], [[1.0, "guess", [], []]], [[1.0, "torus", [-1], []]], [[1.0, "torus", []]])]
    for field, value in wrong:
        with pytest.raises(CertificateError):
            GraphProductCertificate.restored(Stored(stored.kind, {**stored.fields, field: value}))
    with pytest.raises(CertificateError, match="input"):
        replace(good, input_shape=(1,)).verify(graph)


# ---------------------------------------------------------------- routes


def test_modules_with_convolutions_need_their_input_shape():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(1, 2, 3, padding=1), torch.nn.BatchNorm2d(2), torch.nn.ReLU(), torch.nn.MaxPool2d(2),
        torch.nn.Flatten(), torch.nn.Linear(18, 3),
    ).double().eval()  # fmt: skip
    with pytest.raises(InputError, match="input_shape"):
        certbound.lipschitz_product(model, 2)
    for norm in NORMS:
        result = certbound.lipschitz_product(model, norm, input_shape=(1, 6, 6))
        assert result.bound.rigor is Rigor.RIGOROUS
        assert result.certificate.verify(model)
        x = torch.randn(20, 1, 6, 6, dtype=torch.float64)
        for sample in x:
            J = torch.func.jacrev(lambda v: model(v[None])[0])(sample).reshape(3, -1).detach().numpy()
            assert matrix_norm(J, norm) <= result.value * (1 + 1e-9)


def test_small_parts():
    assert root_of_squares([math.inf, 1.0]) == math.inf
    graph = Graph((Node(Input((1, 2, 3))), Node(Permute((0, 2, 1)), (0,)), Node(Concat(2), (1, 1))))
    ((node, counts),) = Reader(graph).copies(2)
    assert (node, counts.tolist()) == (0, [2] * 6)
