"""Real texts from the committed samples, and planted spans whose explanation is known."""

import shutil
from collections import Counter

import numpy as np
import pytest
import torch
from scipy import stats

from papers.sst import reviews
from papers.sst.reviews import (
    PADDING,
    UNKNOWN,
    encode,
    graded_sentences,
    movie_reviews,
    planted_scores,
    planted_spans,
    selection_precision,
    tokenise,
    vocabulary,
)
from shared.errors import UserError
from shared.paths import DATA, ROOT

SAMPLES = ROOT / "tests" / "data"


def sample(**arguments):
    return graded_sentences(folder=SAMPLES, allow_sample=True, **arguments)


def lines_of_the_sample():
    """Sentence -> rating in [-4, 4] and document, read in another way."""
    found = {}
    for table in reviews.GRADED:
        rows = np.genfromtxt(
            SAMPLES / "graded_sentiment" / f"{table}_GroundTruth.txt",
            delimiter="\t",
            dtype=str,
            encoding="utf-8",
            comments=None,
        )
        for identity, rating, text in rows:
            found[text.strip()] = (float(rating), (table, identity.split("_")[0]))
    return found


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("It's a well-made film.", ["it's", "a", "well-made", "film", "."]),
        ("LMAO, AMAZING!", ["lmao", ",", "amazing", "!"]),
        ("love &amp; peace... :)", ["love", "&", "peace", "...", ":)"]),
        ("One.<br /><br />Two", ["one", ".", "two"]),
        ("Münch's  ''best''", ["münch's", "''", "best", "''"]),
        ("", []),
    ],
)
def test_words(text, words):
    assert tokenise(text) == words


def test_the_vocabulary_is_ordered_by_frequency_then_alphabet():
    texts = [["b", "a", "c", "c"], ["a", "b", "c", "d"]]
    assert list(vocabulary(texts)) == ["<pad>", "<unk>", "c", "a", "b"]
    assert list(vocabulary(texts, size=3)) == ["<pad>", "<unk>", "c"]
    assert list(vocabulary(texts, least=1)) == ["<pad>", "<unk>", "c", "a", "b", "d"]
    assert list(vocabulary(texts).values()) == list(range(5))
    with pytest.raises(ValueError, match="no room"):
        vocabulary(texts, size=2)


def test_encoding_pads_cuts_and_never_gives_an_empty_text():
    ids = {"<pad>": 0, "<unk>": 1, "good": 2, "bad": 3}
    tokens, lengths = encode([["good", "film"], [], ["bad"] * 5], ids, 3)
    assert tokens.tolist() == [[2, UNKNOWN, PADDING], [UNKNOWN, PADDING, PADDING], [3, 3, 3]]
    assert lengths.tolist() == [2, 1, 3]


def test_graded_sentences_keep_their_ratings_and_documents_stay_together():
    corpus = sample()
    assert corpus.profile == "sample"
    expected = lines_of_the_sample()
    place = {}
    for split in corpus[:3]:
        assert split.tokens.shape == (len(split), 50)
        assert split.tokens.dtype == torch.int64
        for text, rating in zip(split.texts, split.ratings.tolist(), strict=True):
            level, document = expected[text]
            assert rating * 8 - 4 == pytest.approx(level, abs=1e-5)
            assert place.setdefault(document, id(split)) == id(split)
    assert sum(len(split) for split in corpus[:3]) == 80
    assert len(corpus.train) > len(corpus.validation) > 0
    assert len(corpus.test) > 0


def test_the_vocabulary_knows_the_training_texts_alone():
    corpus = sample()
    counts = Counter(word for text in corpus.train.texts for word in tokenise(text))
    assert set(corpus.vocabulary) - {"<pad>", "<unk>"} == {word for word, count in counts.items() if count > 1}
    names = {i: word for word, i in corpus.vocabulary.items()}
    for split in corpus[:3]:
        for i in range(len(split)):
            words = split.words(i)
            assert words == tokenise(split.texts[i])[:50]
            shown = [names[token] for token in split.tokens[i].tolist()]
            assert shown[: len(words)] == [word if word in corpus.vocabulary else "<unk>" for word in words]
            assert set(shown[len(words) :]) <= {"<pad>"}


def test_splits_depend_on_the_seed_only():
    assert sample(seed=1).test.texts == sample(seed=1, longest=5, size=30).test.texts
    assert sample(seed=1).test.texts != sample(seed=2).test.texts
    short = sample(longest=5, size=30)
    assert short.train.tokens.shape[1] == 5
    assert int(short.train.lengths.max()) == 5
    assert len(short.vocabulary) == 30
    assert int(short.train.tokens.max()) < 30


def test_movie_reviews_take_the_long_source_only():
    corpus = movie_reviews(folder=SAMPLES, allow_sample=True)
    assert corpus.profile == "sample"
    assert [len(split) for split in corpus[:3]] == [10, 1, 1]
    assert corpus.train.tokens.shape == (10, 350)
    assert sum(float(split.ratings.sum()) for split in corpus[:3]) == 6
    everything = " ".join(text for split in corpus[:3] for text in split.texts)
    assert "Sean Connery" in everything
    assert "by-the-numbers yarn" not in everything


@pytest.mark.parametrize("load", [graded_sentences, movie_reviews])
def test_samples_are_refused_where_data_are_wanted(load):
    with pytest.raises(UserError, match="sample"):
        load(folder=SAMPLES)


def test_missing_and_damaged_files_are_refused(tmp_path):
    with pytest.raises(UserError, match="missing"):
        graded_sentences(folder=tmp_path)
    shutil.copytree(SAMPLES / "movie_reviews", tmp_path / "movie_reviews")
    path = tmp_path / "movie_reviews" / "combined_movie_reviews.csv"
    path.write_text(path.read_text().replace(",0,imdb", ",2,imdb", 1))
    with pytest.raises(UserError, match="damaged"):
        movie_reviews(folder=tmp_path, allow_sample=True)


def test_rows_of_another_form_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(reviews, "check", lambda *_, **__: "full")
    (tmp_path / "movie_reviews").mkdir()
    (tmp_path / "movie_reviews" / "combined_movie_reviews.csv").write_text(
        "text,label,source\ngood,1,imdb\nbad,7,imdb\n"
    )
    with pytest.raises(UserError, match="row 3"):
        movie_reviews(folder=tmp_path)
    (tmp_path / "graded_sentiment").mkdir()
    for table in reviews.GRADED:
        (tmp_path / "graded_sentiment" / f"{table}_GroundTruth.txt").write_text("1_1\t0.5\tfine\r\n1_2 0.5 fine\r\n")
    with pytest.raises(UserError, match=r"amazonReviewSnippets_GroundTruth\.txt:2"):
        graded_sentences(folder=tmp_path)


def test_two_documents_cannot_be_split(tmp_path, monkeypatch):
    monkeypatch.setattr(reviews, "check", lambda *_, **__: "full")
    (tmp_path / "movie_reviews").mkdir()
    (tmp_path / "movie_reviews" / "combined_movie_reviews.csv").write_text("text,label,source\na,1,imdb\nb,0,imdb\n")
    with pytest.raises(UserError, match="2 documents"):
        movie_reviews(folder=tmp_path)


@pytest.mark.data
def test_the_full_sets_have_their_published_sizes():
    sentences = graded_sentences(folder=DATA)
    assert sum(len(split) for split in sentences[:3]) == 3708 + 10605 + 5190 + 4200
    films = movie_reviews(folder=DATA)
    assert sum(len(split) for split in films[:3]) == 25000
    assert not set(films.train.texts) & (set(films.test.texts) | set(films.validation.texts))
    assert all(split.ratings.min() >= 0 and split.ratings.max() <= 1 for split in (*sentences[:3], *films[:3]))


def test_planted_ratings_are_the_scores_inside_the_span():
    data = planted_spans("train", 50)
    scores = planted_scores().tolist()
    for tokens, span, rating in zip(data.tokens.tolist(), data.spans.tolist(), data.ratings.tolist()):
        total = sum(scores[token] for token, inside in zip(tokens, span) if inside)
        assert rating == pytest.approx(1 / (1 + np.exp(-total)), abs=1e-6)


def test_planted_spans_are_contiguous_and_have_all_lengths_and_places():
    data = planted_spans("test", 3000)
    assert data.tokens.shape == data.spans.shape == (3000, 100)
    edges = torch.nn.functional.pad(data.spans.int(), (1, 1)).diff(dim=1)
    assert (edges == 1).sum(1).unique().tolist() == [1]
    assert data.spans.sum(1).unique().tolist() == list(range(15, 26))
    assert data.spans.any(0).all()
    assert set(data.lengths.tolist()) == {100}
    assert int(data.tokens.min()) == 1
    assert int(data.tokens.max()) == 200


def test_a_single_opinion_does_not_tell_where_the_span_is():
    """Opinions inside and outside have one distribution; the words of the topic tell."""
    data = planted_spans("train", 4000)
    topic, opinions = data.tokens <= 40, (data.tokens > 40) & (data.tokens <= 100)
    inside = data.tokens[opinions & data.spans].bincount(minlength=201)[41:101]
    outside = data.tokens[opinions & ~data.spans].bincount(minlength=201)[41:101]
    assert stats.chi2_contingency(torch.stack([inside, outside]).numpy()).pvalue > 0.001
    assert topic[data.spans].float().mean() == pytest.approx(0.5, abs=0.01)
    assert opinions[data.spans].float().mean() == pytest.approx(0.5, abs=0.01)
    assert topic[~data.spans].float().mean() == pytest.approx(0.05, abs=0.005)
    assert opinions[~data.spans].float().mean() == pytest.approx(0.25, abs=0.01)
    assert outside.sum() > 1.8 * inside.sum(), "an opinion alone is more likely to lie outside"


def test_good_and_bad_opinions_balance():
    scores = planted_scores()
    assert scores.shape == (201,)
    assert not scores[:41].any()
    assert not scores[101:].any()
    opinions = scores[41:101]
    torch.testing.assert_close(opinions, -opinions.flip(0))
    assert opinions.std() == pytest.approx(0.5, abs=0.02)
    ratings = planted_spans("train", 4000).ratings
    assert ratings.mean() == pytest.approx(0.5, abs=0.02)
    assert 0.2 < ratings.std() < 0.35


def test_a_planted_example_depends_on_split_index_and_seed_only():
    many = planted_spans("train", 2500, seed=4)
    few = planted_spans("train", 1001, seed=4)
    assert torch.equal(few.tokens, many.tokens[:1001])
    assert torch.equal(few.spans, many.spans[:1001])
    assert torch.equal(few.ratings, many.ratings[:1001])
    for other in (planted_spans("test", 1001, seed=4), planted_spans("train", 1001, seed=5)):
        assert not torch.equal(few.tokens, other.tokens)
    assert not torch.equal(many.tokens[:1000], many.tokens[1000:2000])
    assert few.words(0)[:2] == [f"w{few.tokens[0, 0]}", f"w{few.tokens[0, 1]}"]


def test_selection_precision():
    spans = torch.tensor([[True, True, False, False], [False, False, False, True]])
    selected = torch.tensor([[1.0, 0, 1, 0], [0, 0, 0, 0]])
    assert selection_precision(selected, spans).tolist() == [0.5, 0]
