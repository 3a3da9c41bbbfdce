"""Encoder and decoder against the plain formulation with pairs written out, symmetries, shapes, parameter counts."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from papers.sst.graph_layout import draw_layouts, layout_step
from papers.sst.model import (
    Decoder,
    Encoder,
    directed_from_matrix,
    directed_from_undirected,
    directed_positions,
    matrix_from_directed,
    rollout,
    undirected_from_directed,
)

#: (sender, receiver) of the directed edges of K_n in order.
PAIRS = {n: [(s, r) for r in range(n) for s in range(n) if s != r] for n in (2, 4, 5, 10)}


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


# --- edges ---


def test_order_of_the_directed_edges() -> None:
    for n, pairs in PAIRS.items():
        there, back = directed_positions(n)
        undirected = list(itertools.combinations(range(n), 2))
        assert [pairs[p] for p in there] == undirected
        assert [pairs[p] for p in back] == [(j, i) for i, j in undirected]
        values = torch.arange(1.0, n * (n - 1) + 1)
        matrix = matrix_from_directed(values, n)
        assert (matrix.diagonal() == 0).all()
        assert [matrix[r, s].item() for s, r in pairs] == values.tolist()
        torch.testing.assert_close(directed_from_matrix(matrix[None, ..., None])[0, :, 0], values)


def test_directed_and_undirected_values() -> None:
    undirected = torch.randn(3, 10)
    directed = directed_from_undirected(undirected, 5)
    matrix = matrix_from_directed(directed, 5)
    assert torch.equal(matrix, matrix.mT)
    first, second = torch.triu_indices(5, 5, 1)
    assert torch.equal(matrix[:, first, second], undirected)
    torch.testing.assert_close(undirected_from_directed(directed, 5), undirected)
    any_directed = torch.randn(3, 20)
    matrix = matrix_from_directed(any_directed, 5)
    expected = ((matrix + matrix.mT) / 2)[:, first, second]
    torch.testing.assert_close(undirected_from_directed(any_directed, 5), expected)


# --- the plain formulation ---


def plain_block(block: nn.Module, x: Tensor) -> Tensor:
    x = F.elu(block.second(F.elu(block.first(x))))
    return block.norm(x.flatten(0, -2)).view_as(x)


def plain_encoder(encoder: Encoder, frames: Tensor) -> Tensor:
    n = frames.shape[1]
    senders, receivers = torch.tensor(PAIRS[n]).T

    def pairs(x: Tensor) -> Tensor:
        return torch.cat([x[:, senders], x[:, receivers]], -1)

    skip = plain_block(encoder.edges, pairs(plain_block(encoder.vertices, frames.flatten(2))))
    summed = torch.zeros(len(frames), n, skip.shape[-1]).index_add(1, receivers, skip)
    x = plain_block(encoder.vertices_again, summed / n)
    return encoder.logits(plain_block(encoder.edges_again, torch.cat([pairs(x), skip], -1)))


def plain_decoder(decoder: Decoder, positions: Tensor, edges: Tensor) -> Tensor:
    """One moment: positions (B, n, 2)."""
    senders, receivers = torch.tensor(PAIRS[positions.shape[1]]).T
    pairs = torch.cat([positions[:, senders], positions[:, receivers]], -1)
    weights = [edges] if len(decoder.message_first) == 1 else [1 - edges, edges]
    total = 0.0
    for first, second, weight in zip(decoder.message_first, decoder.message_second, weights, strict=True):
        total = total + F.relu(second(F.relu(first(pairs)))) * weight[..., None]
    summed = torch.zeros(*positions.shape[:2], total.shape[-1]).index_add(1, receivers, total)
    return positions + decoder.motion(torch.cat([positions, summed], -1))


@pytest.mark.parametrize("outputs", [1, 2])
def test_encoder_is_the_plain_one(outputs: int) -> None:
    encoder, frames = Encoder(6, 8, outputs), torch.randn(7, 5, 6, 2)
    nn.init.normal_(encoder.edges.norm.weight)
    nn.init.normal_(encoder.edges_again.norm.bias)
    expected = plain_encoder(encoder, frames)
    assert expected.shape == (7, 20, outputs)
    torch.testing.assert_close(encoder(frames), expected, rtol=1e-4, atol=1e-5)
    encoder.eval()
    torch.testing.assert_close(encoder(frames), plain_encoder(encoder, frames), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("types", [1, 2])
def test_decoder_is_the_plain_one(types: int) -> None:
    decoder, positions, edges = Decoder(8, types), torch.randn(6, 3, 5, 2), torch.rand(6, 20)
    ours = decoder(positions, edges)
    for moment in range(3):
        torch.testing.assert_close(ours[:, moment], plain_decoder(decoder, positions[:, moment], edges))


def test_gradients_are_those_of_the_plain_networks() -> None:
    encoder, decoder = Encoder(3, 8), Decoder(8)
    frames, positions = torch.randn(4, 5, 3, 2), torch.randn(4, 1, 5, 2)
    parameters = [*encoder.parameters(), *decoder.parameters()]

    def gradients(logits: Tensor, decode: object) -> tuple[Tensor, ...]:
        loss = decode(logits.squeeze(-1).sigmoid()).square().sum()
        return torch.autograd.grad(loss, parameters)

    ours = gradients(encoder(frames), lambda x: decoder(positions, x)[:, 0])
    plain = gradients(plain_encoder(encoder, frames), lambda x: plain_decoder(decoder, positions[:, 0], x))
    for one, other in zip(ours, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


# --- symmetries and shapes ---


def test_renumbered_vertices_give_renumbered_edges_and_positions() -> None:
    n, order = 5, torch.randperm(5)
    encoder, decoder = Encoder(4, 8).eval(), Decoder(8)
    frames, edges = torch.randn(3, n, 4, 2), torch.rand(3, 20)
    moved = [PAIRS[n].index((order[s].item(), order[r].item())) for s, r in PAIRS[n]]
    torch.testing.assert_close(encoder(frames[:, order]), encoder(frames)[:, moved])
    positions = torch.randn(3, 2, n, 2)
    torch.testing.assert_close(decoder(positions[:, :, order], edges[:, moved]), decoder(positions, edges)[:, :, order])


def test_a_vertex_depends_on_its_incoming_edges_only() -> None:
    """One type: the weight of (s -> r) moves r and nothing else."""
    decoder, positions = Decoder(8, types=1), torch.randn(1, 1, 5, 2)
    edges = torch.rand(1, 20)
    before = decoder(positions, edges)
    for index, (_, receiver) in enumerate(PAIRS[5]):
        changed = edges.clone()
        changed[0, index] += 0.5
        difference = (decoder(positions, changed) - before)[0, 0].abs().sum(-1)
        assert torch.nonzero(difference).flatten().tolist() in ([receiver], [])


def test_swapped_types_with_complementary_weights_are_the_same_decoder() -> None:
    decoder, positions, edges = Decoder(8), torch.randn(2, 1, 4, 2), torch.rand(2, 12)
    expected = decoder(positions, edges)
    for layers in (decoder.message_first, decoder.message_second):
        layers[0], layers[1] = layers[1], layers[0]
    torch.testing.assert_close(decoder(positions, 1 - edges), expected)


def test_low_precision_products_stay_close() -> None:
    frames, edges = torch.randn(4, 10, 5, 2), torch.rand(4, 90)
    exact, low = Encoder(5, 16), Encoder(5, 16, dtype=torch.bfloat16)
    low.load_state_dict(exact.state_dict())
    assert low(frames).dtype == torch.float32
    assert (low(frames) - exact(frames)).abs().mean() < 0.05 * exact(frames).std()
    decoder, low_decoder = Decoder(16), Decoder(16, dtype=torch.bfloat16)
    low_decoder.load_state_dict(decoder.state_dict())
    positions = frames.transpose(1, 2)
    predicted = low_decoder(positions, edges)
    assert predicted.dtype == torch.float32
    assert (predicted - decoder(positions, edges)).abs().max() < 0.02


@pytest.mark.parametrize("prediction_steps", [1, 2, 3, 5])
def test_rollout_starts_anew_from_true_frames(prediction_steps: int) -> None:
    decoder, frames, edges = Decoder(8), torch.randn(2, 4, 6, 2), torch.rand(2, 12)
    predicted = rollout(decoder, frames, edges, prediction_steps)
    assert predicted.shape == (2, 4, 5, 2)
    x = torch.empty(0)
    for t in range(5):
        x = frames[:, :, t] if t % prediction_steps == 0 else x
        x = plain_decoder(decoder, x, edges)
        torch.testing.assert_close(predicted[:, :, t], x, rtol=1e-4, atol=1e-5)


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="1 or 2 types"):
        Decoder(8, types=3)
    for steps in (0, 6):
        with pytest.raises(ValueError, match="prediction steps"):
            rollout(Decoder(8), torch.randn(2, 4, 6, 2), torch.rand(2, 12), steps)


def test_parameters_of_the_published_networks() -> None:
    with torch.device("meta"):
        assert count(Encoder(10, 256)) == 664_833
        assert count(Encoder(10, 256, outputs=2)) == 664_833 + 257
        assert count(Decoder(256)) == 266_754
        assert count(Decoder(256, types=1)) == 266_754 - 67_072


def test_initial_weights_of_the_encoder() -> None:
    encoder = Encoder(10, 64)
    assert all((x.bias == 0.1).all() for x in encoder.modules() if isinstance(x, nn.Linear))
    expected = (2 / (64 + 192)) ** 0.5
    assert encoder.edges_again.first.weight.std().item() == pytest.approx(expected, rel=0.05)


def test_a_decoder_that_knows_the_trees_learns_to_move() -> None:
    """A hundred steps on one batch of true motions: the error falls to less than half that of standing still."""
    layouts = draw_layouts("train", 64, 2, seed=0)
    start = layouts.frames[:, :, :1].transpose(1, 2)
    target = layout_step(layouts.frames[:, :, 0], layouts.trees).float()
    edges = directed_from_undirected(layouts.trees, 10)
    decoder = Decoder(32)
    optimizer = torch.optim.Adam(decoder.parameters(), 1e-2)
    for _ in range(100):
        loss = (decoder(start, edges)[:, 0] - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.5 * (start[:, 0] - target).square().mean().item()
