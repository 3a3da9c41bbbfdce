"""Networks of ListOps against loops over tokens and edges; padding that changes nothing; how far messages travel."""

import pytest
import torch

from papers.sst.listops import CLASSES, VOCABULARY, examples, gold_edges, parse
from papers.sst.listops_model import EdgeScores, GraphClassifier, SequenceClassifier, possible_edges, present

WORDS = len(VOCABULARY)


def drawn(count=6):
    return examples("train", count).take(torch.arange(count))


def with_rubbish(batch, extra):
    """Tokens with `extra` more columns and arbitrary tokens in all the padding."""
    count, longest = batch.tokens.shape
    rubbish = torch.randint(WORDS, (count, longest + extra))
    here = present(batch.lengths, longest + extra)
    return torch.where(here, torch.nn.functional.pad(batch.tokens, (0, extra)), rubbish)


def count(network):
    return sum(parameter.numel() for parameter in network.parameters())


def lstm(inputs, hidden):
    return 4 * hidden * (inputs + hidden + 2)


def linear(inputs, outputs):
    return inputs * outputs + outputs


def test_possible_edges_by_hand():
    edges = possible_edges(torch.tensor([3, 5, 1]), 5)
    for b, length in enumerate((3, 5, 1)):
        for i in range(5):
            for j in range(5):
                assert edges[b, i, j] == (i != j and i < length and j < length)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_edge_scores_are_the_bilinear_form_of_two_encoders(bidirectional):
    batch = drawn()
    network = EdgeScores(embedding=7, hidden=8, bidirectional=bidirectional)
    scores = network(batch.tokens, batch.lengths)
    longest = batch.tokens.shape[1]
    assert scores.shape == (6, longest, longest)
    for b, length in enumerate(batch.lengths.tolist()):
        features = []
        for encoder in (network.parent, network.child):
            embedded = encoder.embedding(batch.tokens[b : b + 1, :length])
            found = encoder.forwards(embedded)[0]
            if bidirectional:
                found = torch.cat([found, encoder.backwards(embedded.flip(1))[0].flip(1)], dim=-1)
            features.append(found[0])
        for i, j in ((0, 1), (length - 1, 0), (2, length // 2)):
            expected = features[0][i] @ (network.bilinear.weight @ features[1][j] + network.bilinear.bias)
            torch.testing.assert_close(scores[b, i, j], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_padding_changes_no_edge_score(bidirectional):
    batch = drawn()
    network = EdgeScores(hidden=10, bidirectional=bidirectional)
    first, second = network(batch.tokens, batch.lengths), network(with_rubbish(batch, 4), batch.lengths)
    longest = batch.tokens.shape[1]
    here = possible_edges(batch.lengths, longest)
    torch.testing.assert_close(first[here], second[:, :longest, :longest][here], rtol=1e-4, atol=1e-6)


def test_padding_changes_no_value():
    batch = drawn()
    longest = batch.tokens.shape[1] + 4
    tokens, edges = with_rubbish(batch, 4), torch.rand(6, longest, longest)
    graph, sequence = GraphClassifier(), SequenceClassifier()
    together, baseline = graph(tokens, batch.lengths, edges), sequence(tokens, batch.lengths)
    for b, length in enumerate(batch.lengths.tolist()):
        row, alone = slice(b, b + 1), (batch.tokens[b : b + 1, :length], batch.lengths[b : b + 1])
        torch.testing.assert_close(graph(*alone, edges[row, :length, :length]), together[row], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(sequence(*alone), baseline[row], rtol=1e-4, atol=1e-6)


def test_messages_by_loops_over_edges():
    batch = drawn(2)
    network = GraphClassifier(embedding=5, hidden=6, rounds=3).double()
    longest = batch.tokens.shape[1]
    edges = torch.rand(2, longest, longest, dtype=torch.float64)
    logits = network(batch.tokens, batch.lengths, edges)
    for b, length in enumerate(batch.lengths.tolist()):
        embedded = network.embedding(batch.tokens[b, :length])
        features = list(network.start(embedded))
        weights, bias = network.joint.weight, network.token(embedded)
        for _ in range(3):
            messages = [network.message(feature) for feature in features]
            for i in range(length):
                received = sum(edges[b, i, j] * messages[j] for j in range(length))
                inside = (bias[i] + weights[:, :6] @ features[i] + weights[:, 6:] @ received).relu()
                features[i] = features[i] + network.update(inside)
        torch.testing.assert_close(logits[b], network.value(features[0]))


def test_the_order_of_arguments_changes_no_value():
    """With gold edges the network sees a set of arguments, as the operators do."""
    network = GraphClassifier()
    values = []
    for text in ("[MAX 2 9 [MIN 4 7 ] 0 ]", "[MAX [MIN 7 4 ] 0 9 2 ]"):
        tokens = torch.tensor([parse(text)])
        heads = torch.tensor([[-1, 0, 0, 0, 3, 3, 3, 0, 0], [-1, 0, 1, 1, 1, 0, 0, 0, 0]][len(values)])[None]
        values.append(network(tokens, torch.tensor([9]), gold_edges(heads)))
    torch.testing.assert_close(*values)


@pytest.mark.parametrize(("rounds", "reached"), [(1, False), (2, False), (3, True), (5, True)])
def test_a_digit_under_three_operators_needs_three_rounds(rounds, reached):
    tokens = torch.tensor([parse("[MAX 2 [MIN 4 [MED 7 8 ] ] ]"), parse("[MAX 2 [MIN 4 [MED 7 9 ] ] ]")])
    heads = torch.tensor([[-1, 0, 0, 2, 2, 4, 4, 4, 2, 0]] * 2)
    logits = GraphClassifier(rounds=rounds)(tokens, torch.tensor([10, 10]), gold_edges(heads))
    assert torch.equal(logits[0], logits[1]) != reached


def test_gradients_reach_scores_through_relaxed_edges():
    batch = drawn()
    parser, classifier = EdgeScores(), GraphClassifier()
    scores = parser(batch.tokens, batch.lengths)
    logits = classifier(batch.tokens, batch.lengths, scores.sigmoid())
    torch.nn.functional.cross_entropy(logits, batch.labels).backward()
    for network in (parser, classifier):
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("kind", ["graph", "sequence"])
def test_a_step_lowers_the_loss(kind):
    batch = drawn(32)
    network = GraphClassifier() if kind == "graph" else SequenceClassifier()
    inputs = (gold_edges(batch.heads),) if kind == "graph" else ()
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-3)
    losses = []
    for _ in range(3):
        loss = torch.nn.functional.cross_entropy(network(batch.tokens, batch.lengths, *inputs), batch.labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[0] > losses[1] > losses[2]


def test_shapes():
    batch = drawn(3)
    edges = gold_edges(batch.heads)
    assert GraphClassifier(embedding=4, hidden=6)(batch.tokens, batch.lengths, edges).shape == (3, CLASSES)
    assert SequenceClassifier(embedding=4, hidden=6)(batch.tokens, batch.lengths).shape == (3, CLASSES)


def test_parameters_at_the_published_sizes():
    """Embedding and hidden features 60."""
    with torch.device("meta"):
        encoder, head = WORDS * 60 + lstm(60, 60), linear(60, 60) + linear(60, 10)
        assert count(EdgeScores()) == 2 * encoder + linear(60, 60)
        halves = WORDS * 60 + 2 * lstm(60, 30)
        assert count(EdgeScores(bidirectional=True)) == 2 * halves + linear(60, 60)
        assert count(SequenceClassifier()) == encoder + head
        rounds = linear(60, 60) + 120 * 60 + linear(60, 60)
        assert count(GraphClassifier()) == WORDS * 60 + 2 * linear(60, 60) + rounds + head
        assert count(GraphClassifier(rounds=1)) == count(GraphClassifier(rounds=9))


def test_an_odd_number_cannot_be_halved():
    with pytest.raises(ValueError, match="even"):
        EdgeScores(hidden=7, bidirectional=True)
