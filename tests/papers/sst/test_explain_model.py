"""Selectors and predictor: padding that changes nothing, how far a selector sees, closed forms, parameter counts."""

import pytest
import torch

from papers.sst.explain_model import PADDED_SCORE, ComplexSelector, Predictor, SimpleSelector

WORDS = 30


def texts():
    """Four texts of 12, 5, 1 and 9 words."""
    tokens = torch.randint(1, WORDS, (4, 12))
    return tokens * (torch.arange(12) < torch.tensor([12, 5, 1, 9])[:, None])


def selectors(pairs):
    return {
        "word": SimpleSelector(WORDS, embedding=8, hidden=6, pairs=pairs),
        "window": SimpleSelector(WORDS, embedding=8, hidden=6, window=3, pairs=pairs),
        "complex": ComplexSelector(WORDS, embedding=8, hidden=6, pairs=pairs).eval(),
    }


KINDS = list(selectors(False))


def count(network):
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pairs", [False, True])
def test_shapes_and_scores_of_padding(kind, pairs):
    tokens = texts()
    scores = selectors(pairs)[kind](tokens)
    assert scores.words.shape == (4, 12)
    assert torch.equal(scores.words == PADDED_SCORE, tokens == 0)
    if not pairs:
        assert scores.pairs is None
        return
    assert scores.pairs.shape == (4, 11)
    assert torch.equal(scores.pairs == 0, (tokens[:, 1:] == 0) | (tokens[:, :-1] == 0))


@pytest.mark.parametrize("kind", KINDS)
def test_padding_changes_no_score(kind):
    """A text alone, without padding, has the scores that it has among longer ones."""
    tokens = texts()
    selector = selectors(True)[kind]
    together = selector(torch.nn.functional.pad(tokens, (0, 3)))
    for b, length in enumerate((tokens > 0).sum(1).tolist()):
        alone = selector(tokens[b : b + 1, : max(length, 2)])
        torch.testing.assert_close(alone.words[0, :length], together.words[b, :length])
        torch.testing.assert_close(alone.pairs[0, : length - 1], together.pairs[b, : length - 1])


@pytest.mark.parametrize(("kind", "reach"), [("word", 0), ("window", 1)])
def test_how_far_a_simple_selector_sees(kind, reach):
    tokens = torch.randint(1, WORDS - 1, (1, 12))
    other = tokens.clone()
    other[0, 6] += 1
    selector = selectors(True)[kind]
    first, second = selector(tokens), selector(other)
    moved = (first.words != second.words)[0].nonzero()[:, 0].tolist()
    assert moved == list(range(6 - reach, 7 + reach))
    assert (first.pairs != second.pairs)[0].nonzero()[:, 0].tolist() == list(range(5 - reach, 7 + reach))


def test_the_complex_selector_sees_three_words_each_side_and_the_whole_text():
    tokens = torch.randint(1, WORDS - 1, (1, 12))
    other = tokens.clone()
    other[0, 0] += 1
    selector = selectors(False)["complex"]
    assert (selector(tokens).words != selector(other).words).all()
    with torch.no_grad():
        selector.joint.weight[:, 6:] = 0
    moved = (selector(tokens).words != selector(other).words)[0].nonzero()[:, 0].tolist()
    assert moved == [0, 1, 2, 3]


def test_a_word_by_itself_is_scored_by_a_small_network():
    selector = selectors(True)["word"]
    tokens = torch.tensor([[3, 5, 5, 2]])
    scores = selector(tokens)
    features = torch.relu(
        selector.embedding(tokens[0]) @ selector.convolution.weight[:, :, 0].T + selector.convolution.bias
    )
    torch.testing.assert_close(
        scores.words[0], features @ selector.heads.word.weight[0, :, 0] + selector.heads.word.bias
    )
    left, right = selector.heads.pair.weight[0].T
    torch.testing.assert_close(scores.pairs[0], features[:-1] @ left + features[1:] @ right + selector.heads.pair.bias)


def test_the_predictor_sees_the_mean_of_the_selected_words_only():
    predictor = Predictor(WORDS, embedding=8, hidden=5)
    tokens = torch.randint(1, WORDS, (3, 10))
    selected = torch.zeros(3, 10).scatter_(1, torch.rand(3, 10).topk(4).indices, 1)
    ratings = predictor(tokens, selected, 4)
    assert ratings.shape == (3,)
    assert (ratings > 0).all()
    assert (ratings < 1).all()
    shuffled = torch.where(selected > 0, tokens, torch.randint(1, WORDS, (3, 10)))
    assert torch.equal(predictor(shuffled, selected, 4), ratings)
    for b in range(3):
        chosen = [predictor.embedding(tokens[b, i]) for i in range(10) if selected[b, i]]
        mean = sum(chosen) / 4
        torch.testing.assert_close(predictor.rating(predictor.hidden(mean).relu()).sigmoid()[0], ratings[b])


def test_selected_padding_counts_as_nothing():
    predictor = Predictor(WORDS, embedding=8, hidden=5)
    tokens = torch.tensor([[4, 7, 0, 0]])
    some = predictor(tokens, torch.tensor([[1.0, 1, 0, 0]]), 4)
    assert torch.equal(predictor(tokens, torch.ones(1, 4), 4), some)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_everything_through_a_relaxed_selection(kind):
    selector, predictor, tokens = selectors(True)[kind], Predictor(WORDS, embedding=8, hidden=50), texts()
    scores = selector(tokens)
    pairs = torch.nn.functional.pad(scores.pairs, (0, 1))
    ratings = predictor(tokens, (scores.words + pairs).softmax(-1) * 3, 3)
    (ratings - 0.9).square().sum().backward()
    for name, parameter in [*selector.named_parameters(), *predictor.named_parameters()]:
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0 or name == "heads.word.bias", name
    assert not selector.embedding.weight.grad[0].any()


def test_parameters_at_the_published_sizes():
    """Embedding 200, convolutions of 100 channels, predictor of 250 units."""
    with torch.device("meta"):
        words = 1000 * 200
        assert count(SimpleSelector(1000)) == words + 200 * 100 + 100 + 101
        assert count(SimpleSelector(1000, window=3, pairs=True)) == words + 3 * 200 * 100 + 100 + 101 + 201
        published = words + (3 * 200 * 100 + 100) + (100 * 100 + 100) + 2 * (3 * 100 * 100 + 100) + (200 * 100 + 100)
        assert count(ComplexSelector(1000)) == published + 101
        assert count(ComplexSelector(1000, pairs=True)) == published + 101 + 201
        assert count(Predictor(1000)) == words + (200 * 250 + 250) + 251


def test_a_window_of_two_words_has_no_middle():
    with pytest.raises(ValueError, match="odd"):
        SimpleSelector(WORDS, window=2)
