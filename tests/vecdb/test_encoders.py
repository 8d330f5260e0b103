"""Adapters of text encoders: vectors as NumPy computes them, any company, no network for folders, and no key anywhere."""

from __future__ import annotations

import functools
import json
import logging
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import vecdb
from vecdb.cli import main
from vecdb.embed import Encoder, openai
from vecdb.embed.encoders import encoder_of
from vecdb.embed.model2vec import Model2Vec
from vecdb.embed.onnx import Onnx
from vecdb.embed.openai import OpenAI
from vecdb.embed.sentence_transformers import SentenceTransformers
from vecdb.errors import (
    DimensionMismatch,
    EncoderFailed,
    EncoderMismatch,
    InvalidInput,
    InvalidVector,
    NotFound,
    Overloaded,
    Unauthenticated,
    Unsupported,
    VecdbError,
)

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    *["the", "a", "cat", "dog", "sat", "ran", "on", "mat", "road", "sun", "moon", "rose", "fell", "bread", "milk", "tea"],
]
TEXTS = [
    "the cat sat on the mat",
    "a dog ran on the road",
    "the sun rose",
    "the moon fell on the sea",
    "bread milk tea",
    "tea",
    "the cat ran on a road the dog sat on a mat the sun rose the moon fell",
]
DIM, POSITIONS = 12, 20
KEY = "sk-proj-Secret0123456789"
NO_TORCH = "sentence-transformers is not installed: make test-slow does it, and torch is too large for make test"


# -- models, made here -------------------------------------------------------------------------------------------


def word_tokenizer(*, framed: bool = True) -> Any:
    """A `tokenizers.Tokenizer` of WORDS; framed: [CLS] text [SEP]."""
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({word: at for at, word in enumerate(WORDS)}, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    if framed:
        made.post_processor = tokenizers.processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    return made


def ids_of(text: str, most: int | None = None) -> list[int]:
    """What `word_tokenizer` makes of a text, framed and truncated to `most` tokens."""
    found = [WORDS.index(word) if word in WORDS else 1 for word in text.split()]
    return [2, *(found if most is None else found[: most - 2]), 3]


class OnnxModel:
    """A model whose token vectors are word + position, and what it should give. Beyond its positions it fails.

    kind: "tokens", "sentence" (a vector for each text, of its first token), or "fixed" (exported for one shape of input).
    """

    def __init__(self, folder: Path, seed: int = 0, kind: str = "tokens", *, external: bool = False) -> None:
        onnx = pytest.importorskip("onnx")
        rng = np.random.default_rng(seed)
        self.words = rng.standard_normal((len(WORDS), DIM)).astype(np.float32)
        self.places = rng.standard_normal((POSITIONS, DIM)).astype(np.float32)
        shape = [2, POSITIONS] if kind == "fixed" else ["batch", "length"]
        integers = onnx.TensorProto.INT32 if kind == "fixed" else onnx.TensorProto.INT64
        inputs = [
            onnx.helper.make_tensor_value_info(name, integers, shape)
            for name in ("input_ids", "attention_mask", "position_ids", *(["token_type_ids"] if kind == "fixed" else []))
        ]
        nodes = [
            onnx.helper.make_node("Gather", ["words", "input_ids"], ["word"]),
            onnx.helper.make_node("Gather", ["places", "position_ids"], ["place"]),
            onnx.helper.make_node("Add", ["word", "place"], ["last_hidden_state"]),
        ]
        outputs = [onnx.helper.make_tensor_value_info("last_hidden_state", onnx.TensorProto.FLOAT, [*shape, DIM])]
        tables = [onnx.numpy_helper.from_array(self.words, "words"), onnx.numpy_helper.from_array(self.places, "places")]
        if kind == "sentence":
            nodes.append(onnx.helper.make_node("Gather", ["last_hidden_state", "zero"], ["sentence_embedding"], axis=1))
            tables.append(onnx.numpy_helper.from_array(np.array(0), "zero"))
            outputs.append(onnx.helper.make_tensor_value_info("sentence_embedding", onnx.TensorProto.FLOAT, ["batch", DIM]))
        graph = onnx.helper.make_graph(nodes, "words", inputs, outputs, tables)
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
        folder.mkdir(parents=True)
        onnx.save(model, folder / "model.onnx", save_as_external_data=external, location="weights.bin", size_threshold=0)
        word_tokenizer().save(str(folder / "tokenizer.json"))
        (folder / "config.json").write_text(json.dumps({"max_position_embeddings": POSITIONS}))

    def tokens(self, text: str, most: int = POSITIONS) -> npt.NDArray[np.float32]:
        ids = ids_of(text, most)
        return self.words[ids] + self.places[: len(ids)]

    def means(self, texts: Sequence[str], most: int = POSITIONS) -> npt.NDArray[np.float32]:
        return np.stack([self.tokens(text, most).mean(axis=0) for text in texts])


def static_model(folder: Path, seed: int = 0, **said: Any) -> npt.NDArray[np.float32]:
    """Saves a model of model2vec there, and gives its table of words."""
    model2vec = pytest.importorskip("model2vec")
    table = np.random.default_rng(seed).standard_normal((len(WORDS), DIM)).astype(np.float32)
    model2vec.StaticModel(table, word_tokenizer(framed=False), **said).save_pretrained(folder)
    return table


def bert(folder: Path, seed: int = 0) -> None:
    """Saves a sentence-transformers model there, with two random layers."""
    library = pytest.importorskip("sentence_transformers", reason=NO_TORCH)
    import torch
    import transformers
    from sentence_transformers.models import Pooling, Transformer

    torch.manual_seed(seed)
    config = transformers.BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=32,
    )  # fmt: skip
    inner = folder.with_name(folder.name + ".inner")
    transformers.BertModel(config).eval().save_pretrained(inner)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=word_tokenizer(), unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]",
        model_max_length=32,
    ).save_pretrained(inner)  # fmt: skip
    transformer = Transformer(str(inner))
    library.SentenceTransformer(modules=[transformer, Pooling(16, pooling_mode="mean")], device="cpu").save(str(folder))


# -- a server of embeddings --------------------------------------------------------------------------------------


def letters(text: str, dim: int = DIM) -> list[float]:
    return [0.5, *(float(text.count(chr(97 + at))) for at in range(dim - 1))]


def embeddings(asked: dict[str, Any], *, dim: int | None = None) -> dict[str, Any]:
    """A good reply, in the wrong order, with a sign of the model in it."""
    rows = [
        {
            "object": "embedding",
            "index": at,
            "embedding": [len(asked["model"]), *letters(text, dim or asked.get("dimensions", DIM))[1:]],
        }
        for at, text in enumerate(asked["input"])
    ]
    return {"object": "list", "data": rows[::-1], "model": asked["model"]}


class Server:
    """Replies by `script`, one entry a request, then well. An entry: (status, body, headers), or a function of the handler."""

    def __init__(self) -> None:
        outer = self
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.script: list[Any] = []
        self.over = threading.Event()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.asked.append({**asked, "path": self.path})
                outer.headers.append(dict(self.headers))
                entry = outer.script.pop(0) if outer.script else (200, embeddings(asked), {})
                if callable(entry):
                    entry = entry(self, asked)
                    if entry is None:
                        return
                status, body, headers = entry
                data = body if isinstance(body, bytes) else json.dumps(body).encode()
                with suppress(OSError):
                    self.send_response(status)
                    for name, value in {"Content-Length": str(len(data)), **headers}.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()

    def close(self) -> None:
        self.over.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    made = Server()
    monkeypatch.setenv("OPENAI_BASE_URL", made.url)
    yield made
    made.close()


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long it would have slept before each new try."""
    found: list[float] = []
    monkeypatch.setattr(openai, "_sleep", found.append)
    return found


# -- all adapters, end to end ------------------------------------------------------------------------------------

slow_torch = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
KINDS = ["onnx", "model2vec", "openai", pytest.param("sentence-transformers", marks=slow_torch)]
Make = Callable[[int], str]


@pytest.fixture
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    """make(seed) -> KIND:WHAT of a model; another seed is another model."""
    kind = request.param
    if kind == "openai":
        request.getfixturevalue("server")
        return lambda seed: "openai:model" + "x" * seed
    made: dict[str, Callable[[Path, int], object]] = {
        "onnx": OnnxModel,
        "model2vec": static_model,
        "sentence-transformers": bert,
    }

    def saved(seed: int) -> str:
        folder = tmp_path / f"model{seed}"
        if not folder.exists():
            made[kind](folder, seed)
        return f"{kind}:{folder}"

    return saved


every = pytest.mark.parametrize("make", KINDS, indirect=True)


@every
def test_texts_are_found_again_by_the_model_that_embedded_them_and_no_other(make: Make, tmp_path: Path) -> None:
    encoder = encoder_of(make(0))
    assert isinstance(encoder, Encoder)
    assert encoder.encode([]).shape == (0, encoder.dim)
    vectors = encoder.encode(TEXTS)
    assert (vectors.dtype, vectors.shape) == (np.float32, (len(TEXTS), encoder.dim))
    with vecdb.open(tmp_path / "db") as db:
        docs = db.create_collection("docs", embed=encoder)
        docs.upsert(ids=range(len(TEXTS)), texts=TEXTS)
        for at, text in enumerate(TEXTS):
            hit = docs.search(text, k=1)[0]
            assert (hit.id, hit.payload) == (at, {"text": text})
        assert docs.info().encoder == encoder.name
    with vecdb.open(tmp_path / "db") as db:
        with pytest.raises(EncoderMismatch, match=re.escape(encoder.name)):
            db["docs"].search("tea")
        with pytest.raises(EncoderMismatch, match=re.escape(encoder.fingerprint)):
            db.collection("docs", embed=encoder_of(make(1)))  # type: ignore[arg-type]
        again = db.collection("docs", embed=encoder_of(make(0)))  # type: ignore[arg-type]
        assert again.search(TEXTS[4], k=1).ids == [4]


@every
def test_a_file_is_ingested_and_searched_from_the_command_line(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, path = tmp_path / "texts.jsonl", tmp_path / "db"
    file.write_text("".join(json.dumps({"id": f"t{at}", "body": text}) + "\n" for at, text in enumerate(TEXTS)))
    spec = make(0)
    with vecdb.open(path) as db:
        assert db.ingest("docs", file, embed=encoder_of(spec), text="body").points == len(TEXTS)
        assert db.collection("docs", embed=encoder_of(spec)).search(TEXTS[1], k=1).ids == ["t1"]  # type: ignore[arg-type]

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            main(list(arguments))
        said = capsys.readouterr()
        return int(stop.value.code or 0), said.out, said.err

    code, out, err = run("search", "docs", TEXTS[3], "--db", str(path), "--embed", spec, "-k", "1", "--json")
    assert code == 0, err
    assert [hit["id"] for hit in json.loads(out)] == ["t3"]
    code, out, err = run("embed", "--embed", spec, TEXTS[0], "tea")
    assert code == 0, err
    encoder = encoder_of(spec)
    assert not isinstance(encoder, str)
    shown = [json.loads(line) for line in out.splitlines()]
    assert [each["text"] for each in shown] == [TEXTS[0], "tea"]
    np.testing.assert_allclose([each["vector"] for each in shown], encoder.encode([TEXTS[0], "tea"]), rtol=1e-5, atol=1e-6)
    code, _, err = run("search", "docs", "tea", "--db", str(path), "--embed", make(1))
    assert (code, err.count("vecdb: ")) == (4, 1), err
    assert err.splitlines()[-1].startswith("vecdb: its texts were embedded by")  # before it, a library's bars of progress
    assert "Traceback" not in err
    code, _, err = run("ingest", str(file), "-c", "other", "--db", str(path), "--embed", spec, "--text", "body")
    assert code == 0, err
    code, _, err = run("search", "docs", "tea", "--db", str(path))
    assert (code, len(err.splitlines())) == (4, 1), err


@every
def test_a_text_gets_the_same_vector_in_any_company(make: Make) -> None:
    encoder = encoder_of(make(0))
    assert not isinstance(encoder, str)
    texts = [*TEXTS, *(" ".join(WORDS[4 + (at * 7 + step) % 16] for step in range(at % 17 + 1)) for at in range(80))]
    together = encoder.encode(texts)
    np.testing.assert_allclose(np.vstack([encoder.encode([text]) for text in texts]), together, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(encoder.encode(texts[::-1])[::-1], together, rtol=1e-5, atol=1e-5)


@every
def test_threads_may_share_an_encoder(make: Make) -> None:
    encoder = encoder_of(make(0))
    assert not isinstance(encoder, str)
    expected = encoder.encode(TEXTS)
    wrong: list[object] = []

    def work() -> None:
        try:
            for _ in range(10):
                np.testing.assert_allclose(encoder.encode(TEXTS), expected, rtol=1e-5, atol=1e-5)
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("make", [kind for kind in KINDS if kind != "openai"], indirect=True)
def test_a_folder_may_move_and_asks_no_network(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, _, folder = make(0).partition(":")
    before = encoder_of(f"{kind}:{folder}")
    with vecdb.open(tmp_path / "db") as db:
        db.create_collection("docs", embed=before).upsert(ids=range(len(TEXTS)), texts=TEXTS)
    shutil.copytree(folder, tmp_path / "elsewhere" / "renamed")
    calls: list[object] = []

    def no_network(*arguments: Any) -> None:
        calls.append(arguments)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    moved = encoder_of(f"{kind}:{tmp_path / 'elsewhere' / 'renamed'}")
    assert not isinstance(before, str) and not isinstance(moved, str)
    assert moved.name == f"{kind}:renamed"
    assert moved.fingerprint == before.fingerprint
    with vecdb.open(tmp_path / "db") as db:
        assert db.collection("docs", embed=moved).search("tea", k=1).ids == [5]
    with pytest.raises(NotFound, match="no folder"):
        encoder_of(f"{kind}:{tmp_path / 'nowhere'}")
    (tmp_path / "empty").mkdir()
    with pytest.raises((InvalidInput, NotFound)) as refused:
        encoder_of(f"{kind}:{tmp_path / 'empty'}")
    assert "\n" not in str(refused.value)
    (tmp_path / "file").write_text("no model")
    with pytest.raises(InvalidInput, match="is a file"):
        encoder_of(f"{kind}:{tmp_path / 'file'}")
    assert calls == []


@pytest.mark.parametrize(
    ("kind", "module"),
    [("onnx", "onnxruntime"), ("model2vec", "model2vec"), ("sentence-transformers", "sentence_transformers")],
)
def test_a_missing_library_says_how_to_install_it(
    kind: str, module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(Unsupported, match=rf"{module}: pip install 'vecdb\[{kind}\]'"):
        encoder_of(f"{kind}:some/model")
    with pytest.raises(SystemExit, match="8"):
        main(["embed", "--embed", f"{kind}:some/model", "text"])
    assert f"vecdb[{kind}]" in capsys.readouterr().err


def test_names_of_encoders_that_mean_nothing_are_refused() -> None:
    with pytest.raises(
        InvalidInput,
        match=r"tfidf, bm25, sentence-transformers:MODEL, onnx:FOLDER, model2vec:MODEL, splade:FOLDER, openai:MODEL",
    ):
        encoder_of("word2vec:news")
    for name, meaning in (
        ("onnx", "onnx:FOLDER, a folder with"),
        ("openai: ", "openai:MODEL"),
        ("model2vec:", "name or folder"),
    ):
        with pytest.raises(InvalidInput, match=meaning):
            encoder_of(name)
    assert encoder_of("tfidf") == "tfidf"


def test_the_adapters_import_no_library_before_they_are_made() -> None:
    """Their files are named like the libraries, so this also shows that a folder of the package hides none."""
    code = """
import sys
import vecdb.embed.onnx, vecdb.embed.model2vec, vecdb.embed.openai, vecdb.embed.sentence_transformers
print({"onnx", "onnxruntime", "tokenizers", "model2vec", "openai", "sentence_transformers", "torch"} & set(sys.modules))
"""
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip() == "set()"


# -- onnx --------------------------------------------------------------------------------------------------------


def test_onnx_tokens_are_averaged_over_the_mask(tmp_path: Path) -> None:
    model = OnnxModel(tmp_path / "m")
    encoder = Onnx(tmp_path / "m")
    assert (encoder.name, encoder.dim, encoder.pooling, encoder.max_length) == ("onnx:m", DIM, "mean", POSITIONS)
    np.testing.assert_allclose(encoder.encode(TEXTS), model.means(TEXTS), rtol=1e-5, atol=1e-6)
    assert repr(encoder) == f"Onnx('m', dim={DIM})"


def test_onnx_vectors_of_texts_are_taken_as_they_are(tmp_path: Path) -> None:
    model = OnnxModel(tmp_path / "m", kind="sentence")
    (tmp_path / "m" / "1_Pooling").mkdir()
    (tmp_path / "m" / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": "lasttoken"}))  # done in the model
    np.testing.assert_allclose(
        Onnx(tmp_path / "m").encode(TEXTS), np.stack([model.tokens(text)[0] for text in TEXTS]), rtol=1e-6
    )


def test_onnx_takes_the_first_token_where_the_folder_says_so(tmp_path: Path) -> None:
    model = OnnxModel(tmp_path / "m")
    mean = Onnx(tmp_path / "m")
    (tmp_path / "m" / "1_Pooling").mkdir()
    said = tmp_path / "m" / "1_Pooling" / "config.json"
    said.write_text(
        json.dumps({"word_embedding_dimension": DIM, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False})
    )
    first = Onnx(tmp_path / "m")
    expected = np.stack([model.tokens(text)[0] for text in TEXTS])
    np.testing.assert_allclose(first.encode(TEXTS), expected, rtol=1e-6)
    assert first.fingerprint != mean.fingerprint
    assert Onnx(tmp_path / "m", pooling="mean").fingerprint == mean.fingerprint
    said.write_text(json.dumps({"pooling_mode": "lasttoken"}))
    with pytest.raises(InvalidInput, match="lasttoken"):
        Onnx(tmp_path / "m")


def test_onnx_long_texts_are_truncated_to_what_the_model_takes(tmp_path: Path) -> None:
    """The model has no place beyond its last, so it would fail."""
    model = OnnxModel(tmp_path / "m")
    texts = [" ".join(TEXTS * 30), "tea"]
    np.testing.assert_allclose(Onnx(tmp_path / "m").encode(texts), model.means(texts), rtol=1e-5, atol=1e-6)
    shorter = Onnx(tmp_path / "m", max_length=5)
    np.testing.assert_allclose(shorter.encode(TEXTS), model.means(TEXTS, 5), rtol=1e-5, atol=1e-6)
    assert shorter.fingerprint != Onnx(tmp_path / "m").fingerprint
    (tmp_path / "m" / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 7}))
    assert Onnx(tmp_path / "m").max_length == 7
    (tmp_path / "m" / "tokenizer_config.json").write_text(json.dumps({"model_max_length": int(1e30)}))
    (tmp_path / "m" / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 6}))
    assert Onnx(tmp_path / "m").max_length == 6
    (tmp_path / "m" / "config.json").write_text(
        json.dumps({"max_position_embeddings": 6, "model_type": "roberta", "pad_token_id": 1})
    )
    assert Onnx(tmp_path / "m").max_length == 4
    for bad in (-1, 0, 1, 2):  # [CLS] and [SEP] leave no room
        with pytest.raises(InvalidInput, match="max_length"):
            Onnx(tmp_path / "m", max_length=bad)


def test_onnx_a_model_of_one_shape_and_other_inputs_is_given_those(tmp_path: Path) -> None:
    model = OnnxModel(tmp_path / "m", kind="fixed")
    (tmp_path / "m" / "config.json").unlink()
    encoder = Onnx(tmp_path / "m")
    for count in (1, 2, 5):
        np.testing.assert_allclose(encoder.encode(TEXTS[:count]), model.means(TEXTS[:count]), rtol=1e-5, atol=1e-6)
    with pytest.raises(InvalidInput, match="at most"):
        Onnx(tmp_path / "m", max_length=POSITIONS + 1)


def test_onnx_whatever_decides_a_vector_decides_the_fingerprint(tmp_path: Path) -> None:
    OnnxModel(tmp_path / "m", external=True)
    assert (tmp_path / "m" / "weights.bin").stat().st_size > 1000
    before = Onnx(tmp_path / "m").fingerprint
    (tmp_path / "m" / "README.md").write_text("about the model")
    assert Onnx(tmp_path / "m").fingerprint == before
    for name in ("weights.bin", "tokenizer.json"):
        path = tmp_path / "m" / name
        kept = path.read_bytes()
        if name == "weights.bin":
            changed = bytearray(kept)
            changed[100] ^= 1
            path.write_bytes(changed)
        else:
            path.write_text(kept.decode().replace('"bread"', '"toast"'))
        assert Onnx(tmp_path / "m").fingerprint != before
        path.write_bytes(kept)
    assert Onnx(tmp_path / "m").fingerprint == before
    OnnxModel(tmp_path / "n", seed=1)
    assert Onnx(tmp_path / "n").fingerprint != before


def test_onnx_a_model_that_rescales_by_batch_runs_alone(tmp_path: Path) -> None:
    """Dynamic quantization scales by the largest number of a batch, so a text would depend on its neighbours."""
    onnx = pytest.importorskip("onnx")
    OnnxModel(tmp_path / "m")
    model = onnx.load(tmp_path / "m" / "model.onnx")
    model.graph.node[-1].output[0] = "exact"
    model.graph.node.extend([
        onnx.helper.make_node("DynamicQuantizeLinear", ["exact"], ["bytes", "scale", "zero"]),
        onnx.helper.make_node("DequantizeLinear", ["bytes", "scale", "zero"], ["last_hidden_state"]),
    ])  # fmt: skip
    onnx.save(model, tmp_path / "m" / "model.onnx")
    encoder = Onnx(tmp_path / "m")
    together = encoder.encode(TEXTS)
    np.testing.assert_array_equal(np.vstack([encoder.encode([text]) for text in TEXTS]), together)


def test_onnx_what_is_no_model_of_texts_is_refused_in_a_line(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    folder = tmp_path / "m"
    OnnxModel(folder)
    good = {name: (folder / name).read_bytes() for name in ("model.onnx", "tokenizer.json")}

    def refused(error: type[VecdbError], match: str) -> None:
        with pytest.raises(error, match=match) as said:
            Onnx(folder)
        assert "\n" not in str(said.value)
        for name, data in good.items():
            (folder / name).write_bytes(data)

    for name in good:
        (folder / name).unlink()
        refused(NotFound, f"has no {name}")
        for data in (b"", b"nonsense", good[name][: len(good[name]) // 2]):
            (folder / name).write_bytes(data)
            refused(InvalidInput, f"{name} cannot be read")
    (folder / "tokenizer_config.json").write_text("{")
    refused(InvalidInput, "tokenizer_config.json is no JSON")
    (folder / "tokenizer_config.json").unlink()
    floats = onnx.helper.make_tensor_value_info
    for name, output, node in (("pixels", "last_hidden_state", "Identity"), ("input_ids", "shape", "Shape")):
        graph = onnx.helper.make_graph(
            [onnx.helper.make_node(node, [name], [output])],
            "g",
            [floats(name, onnx.TensorProto.INT64 if node == "Shape" else onnx.TensorProto.FLOAT, ["n", "m"])],
            [floats(output, onnx.TensorProto.INT64 if node == "Shape" else onnx.TensorProto.FLOAT, None)],
        )
        onnx.save(
            onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8), folder / "model.onnx"
        )
        refused(InvalidInput, "no model of texts: it (wants pixels|gives shape)")
    model = onnx.load_from_string(good["model.onnx"])
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(np.ones((2, DIM), np.float32), "words"))
    onnx.save(model, folder / "model.onnx")
    refused(InvalidInput, "cannot be run")  # [CLS] is the third word, and there are two
    shutil.move(folder / "model.onnx", folder / "kept")
    (folder / "onnx").mkdir()
    shutil.move(folder / "kept", folder / "onnx" / "model.onnx")
    assert Onnx(folder).dim == DIM


# -- model2vec ---------------------------------------------------------------------------------------------------


def test_model2vec_is_the_mean_of_known_words(tmp_path: Path) -> None:
    table = static_model(tmp_path / "m")
    encoder = Model2Vec(tmp_path / "m")
    expected = np.stack([table[[WORDS.index(word) for word in text.split() if word in WORDS]].mean(axis=0) for text in TEXTS])
    np.testing.assert_allclose(encoder.encode(TEXTS), expected, rtol=1e-5, atol=1e-6)
    assert (encoder.name, encoder.dim, repr(encoder)) == ("model2vec:m", DIM, f"Model2Vec('m', dim={DIM})")
    assert encoder.encode(["nothing known"]).any() == False


def test_model2vec_a_text_without_a_known_word_is_refused_by_cosine(db: vecdb.Database, tmp_path: Path) -> None:
    static_model(tmp_path / "m")
    docs = db.create_collection("docs", embed=Model2Vec(tmp_path / "m"))
    with pytest.raises(InvalidVector, match="zero"):
        docs.upsert(texts=["tea", "nothing known"])
    assert docs.count() == 0


def test_model2vec_whatever_decides_a_vector_decides_the_fingerprint(tmp_path: Path) -> None:
    prints = set()
    table = static_model(tmp_path / "plain")
    static_model(tmp_path / "normalized", normalize=True)
    static_model(tmp_path / "short", max_length=3)
    static_model(tmp_path / "weighted", weights=np.linspace(1, 2, len(WORDS)))
    static_model(tmp_path / "mapped", token_mapping=np.arange(len(WORDS))[::-1].copy())
    static_model(tmp_path / "other", 1)
    shutil.copytree(tmp_path / "plain", tmp_path / "words")
    tokenizer = tmp_path / "words" / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace('"bread"', '"toast"'))
    for folder in ("plain", "normalized", "short", "weighted", "mapped", "other", "words"):
        encoder = Model2Vec(tmp_path / folder)
        encoder.encode(TEXTS)
        assert encoder.fingerprint == Model2Vec(str(tmp_path / folder)).fingerprint
        prints.add(encoder.fingerprint)
    assert len(prints) == 7
    # The library cuts characters first, 3 tokens of a usual length of 3: "the cat s", and of these it knows two words.
    long = Model2Vec(tmp_path / "short").encode([" ".join(TEXTS)])
    np.testing.assert_allclose(long[0], table[[WORDS.index(word) for word in ("the", "cat")]].mean(axis=0), rtol=1e-5)


@pytest.mark.parametrize("broken", ["model.safetensors", "tokenizer.json", "config.json"])
def test_model2vec_a_damaged_folder_is_refused(tmp_path: Path, broken: str) -> None:
    static_model(tmp_path / "m")
    for data in (b"", b"nonsense"):
        (tmp_path / "m" / broken).write_bytes(data)
        with pytest.raises(InvalidInput, match="no model of model2vec") as refused:
            Model2Vec(tmp_path / "m")
        assert "\n" not in str(refused.value)


def test_a_name_that_the_hub_does_not_have_is_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    model2vec = pytest.importorskip("model2vec")
    asked: list[Any] = []

    def refuse(name: str, **said: Any) -> None:
        asked.append((name, said))
        raise OSError("404: no such repository\n\nhints on\nmany lines")

    monkeypatch.setattr(model2vec.StaticModel, "from_pretrained", refuse)
    with pytest.raises(NotFound, match="'owner/model'.*404") as refused:
        Model2Vec("owner/model")
    assert "\n" not in str(refused.value)
    assert asked == [("owner/model", {"force_download": False})]
    for path in ("./model", "/no/such/model", "~/no/such/model", "a/b/c", Path("owner/model"), "..", "model/"):
        with suppress(InvalidInput), pytest.raises(NotFound, match="no folder"):
            Model2Vec(path)
    with pytest.raises(InvalidInput, match="empty"):
        Model2Vec(" ")
    assert len(asked) == 2  # "..", which is there, as a folder


# -- sentence-transformers ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_sentence_transformers_gives_what_the_layers_give(tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers", reason=NO_TORCH)
    import torch
    import transformers

    bert(tmp_path / "m")
    encoder = SentenceTransformers(tmp_path / "m")
    assert (encoder.name, encoder.dim) == ("sentence-transformers:m", 16)
    layers = transformers.BertModel.from_pretrained(tmp_path / "m.inner").eval()
    with torch.no_grad():
        expected = [layers(torch.tensor([ids_of(text)])).last_hidden_state[0].mean(dim=0).numpy() for text in TEXTS]
    np.testing.assert_allclose(encoder.encode(TEXTS), np.stack(expected), rtol=1e-4, atol=1e-5)
    before = encoder.fingerprint
    assert SentenceTransformers(str(tmp_path / "m")).fingerprint == before

    def changed(file: str, old: str, new: str) -> str:
        shutil.rmtree(tmp_path / "c", ignore_errors=True)
        shutil.copytree(tmp_path / "m", tmp_path / "c")
        (path,) = (tmp_path / "c").rglob(file) if file != "1_Pooling" else (tmp_path / "c" / "1_Pooling").glob("config.json")
        text = path.read_text()
        assert re.search(old, text), text
        path.write_text(re.sub(old, new, text))
        return SentenceTransformers(tmp_path / "c").fingerprint

    found = {
        before,
        changed("tokenizer.json", '"bread"', '"toast"'),
        changed("1_Pooling", '"mean"|"pooling_mode_mean_tokens": true', lambda m: {'"mean"': '"max"'}.get(m[0], m[0])),  # type: ignore[arg-type]
        changed("config.json" if len(list((tmp_path / "m").rglob("config.json"))) == 1 else "tokenizer_config.json",
                '"model_max_length": 32', '"model_max_length": 9'),
    }  # fmt: skip
    assert len(found) == 4
    bert(tmp_path / "n", 1)
    assert SentenceTransformers(tmp_path / "n").fingerprint not in found
    (tmp_path / "m" / "model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(InvalidInput, match="no model of sentence-transformers"):
        SentenceTransformers(tmp_path / "m")


# -- openai ------------------------------------------------------------------------------------------------------


def shown_of(error: BaseException) -> str:
    return "".join(traceback.format_exception(error)) + repr(error) + str(vars(error))


def test_openai_asks_as_the_protocol_says_and_puts_replies_in_order(server: Server) -> None:
    encoder = OpenAI("some-model", dimensions=7)
    assert encoder.dim == 7 and server.asked == []
    np.testing.assert_array_equal(encoder.encode(TEXTS)[:, 1:], [letters(text, 7)[1:] for text in TEXTS])
    assert server.asked == [{"path": "/v1/embeddings", "model": "some-model", "input": TEXTS, "dimensions": 7}]
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
    assert server.headers[0]["Content-Type"] == "application/json"
    assert OpenAI("some-model").dim == DIM
    assert "dimensions" not in server.asked[1]


def test_openai_requests_are_small(server: Server) -> None:
    encoder = OpenAI("m", dimensions=3)
    texts = [f"text {at}" for at in range(600)]
    np.testing.assert_array_equal(encoder.encode(texts)[:, 1:], [letters(text, 3)[1:] for text in texts])
    assert [len(asked["input"]) for asked in server.asked] == [256, 256, 88]
    server.asked.clear()
    texts = ["é" * 30_000, "a" * 60_000, "b" * 90_000, "c" * 500_000, "d"]
    assert encoder.encode(texts).shape == (5, 3)
    assert [len(asked["input"]) for asked in server.asked] == [2, 1, 1, 1]


def test_openai_what_may_pass_is_tried_again(server: Server, waits: list[float], caplog: pytest.LogCaptureFixture) -> None:
    def reset(handler: BaseHTTPRequestHandler, _: Any) -> None:
        handler.connection.shutdown(socket.SHUT_RDWR)

    encoder = OpenAI("m", dimensions=DIM)
    for script in (
        [(408, {}, {}), (409, b"", {}), (500, b"<html>", {}), (503, {"error": "busy"}, {}), (599, {}, {})],
        [reset, reset, (429, {"error": {"message": f"slow down, {KEY}"}}, {})],
        [lambda *_: (200, b'{"data": [', {"Content-Length": "1000"})],
    ):
        server.asked.clear()
        waits.clear()
        server.script = list(script)
        assert encoder.encode(["tea"]).shape == (1, DIM)
        assert len(server.asked) == len(script) + 1
        assert len(waits) == len(script)
        for again, wait in enumerate(waits):
            assert 0.25 * 2**again <= wait <= 0.5 * 2**again
    assert "try 2 of 6" in caplog.text and "slow down" in caplog.text
    assert KEY not in caplog.text


def test_openai_waits_as_long_as_it_is_asked_to(server: Server, waits: list[float]) -> None:
    encoder = OpenAI("m", dimensions=DIM)
    server.script = [(429, {}, {"Retry-After": "17"}), (503, {}, {"Retry-After": "soon"}), (429, {}, {"Retry-After": "0"})]
    server.script += [(429, {}, {"Retry-After": formatdate(time.time() + 40, usegmt=True)})]
    encoder.encode(["tea"])
    assert waits[0] == 17 and waits[1] <= 1 and 1 <= waits[2] <= 2 and 36 < waits[3] <= 40
    server.script = [(429, {}, {"Retry-After": "3600"})]
    with pytest.raises(Overloaded, match="wait 3600 s"):
        encoder.encode(["tea"])
    assert len(waits) == 4


def test_openai_a_storm_of_429_ends_after_six_tries(server: Server, waits: list[float]) -> None:
    encoder = OpenAI("m", dimensions=DIM)
    server.script = [(429, {"error": {"message": "rate limit"}}, {})] * 100
    with pytest.raises(Overloaded, match=r"rate limit \(tries: 6\)") as refused:
        encoder.encode(["tea"])
    assert len(server.asked) == 6 and len(waits) == 5
    assert "\n" not in str(refused.value)
    server.script = [(500, {}, {})] * 6
    with pytest.raises(EncoderFailed, match="status 500"):
        encoder.encode(["tea"])
    server.asked.clear()
    server.script = [(429, {"error": {"code": "insufficient_quota", "message": "you have no credit"}}, {})]
    with pytest.raises(Overloaded, match="no credit"):
        encoder.encode(["tea"])
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("status", "error"),
    [(400, InvalidInput), (401, Unauthenticated), (403, Unauthenticated), (404, NotFound), (422, InvalidInput)],
)
def test_openai_what_will_not_pass_is_an_error_at_once(
    server: Server, waits: list[float], status: int, error: type[VecdbError], caplog: pytest.LogCaptureFixture
) -> None:
    server.script = [(status, {"error": {"message": f"wrong\nis {KEY} " + "x" * 1000}}, {})]
    with pytest.raises(error, match=str(status)) as refused:
        OpenAI("m").dim  # noqa: B018
    assert type(refused.value) is error
    assert len(server.asked) == 1 and waits == []
    assert len(str(refused.value)) < 500 and "\n" not in str(refused.value)
    assert KEY not in shown_of(refused.value) + caplog.text
    if error is Unauthenticated:
        assert "OPENAI_API_KEY" in str(refused.value) and "wrong" not in str(refused.value)
    else:
        assert "[key]" in str(refused.value)


def rows(*vectors: Any, index: Callable[[int], Any] = lambda at: at) -> dict[str, Any]:
    return {"data": [{"index": index(at), "embedding": vector} for at, vector in enumerate(vectors)]}


@pytest.mark.parametrize(
    ("body", "error", "match"),
    [
        (b"", EncoderFailed, "no list of embeddings"),
        (b"<html>hello</html>", EncoderFailed, "no list of embeddings"),
        (b"\xff\xfe", EncoderFailed, "no list of embeddings"),
        ([], EncoderFailed, "no list of embeddings"),
        ({"data": None}, EncoderFailed, "no list of embeddings"),
        ({"data": [1, 2]}, EncoderFailed, "no list of embeddings"),
        ({"data": [{"embedding": [1, 2]}] * 2}, EncoderFailed, "no list of embeddings"),
        (rows([1, 2, 3]), EncoderFailed, "1 vectors for 2 texts"),
        (rows([1, 2, 3], [1, 2, 3], [1, 2, 3]), EncoderFailed, "3 vectors for 2 texts"),
        (rows([1, 2, 3], [4, 5, 6], index=lambda _: 0), EncoderFailed, "which vector"),
        (rows([1, 2, 3], [4, 5, 6], index=lambda at: at + 1), EncoderFailed, "which vector"),
        (rows([1, 2, 3], [4, 5, 6], index=str), EncoderFailed, "which vector"),
        (rows([1, 2, 3], [4, 5, 6], index=bool), EncoderFailed, "which vector"),
        (rows([1, 2, 3], [4, 5]), EncoderFailed, "one length"),
        (rows("AAAA", "BBBB"), EncoderFailed, "one length"),
        (rows([], []), EncoderFailed, "one length"),
        (rows(1, 2), EncoderFailed, "one length"),
        (rows([[1, 2, 3]], [[4, 5, 6]]), EncoderFailed, "one length"),
        (rows([1, None, 3], [4, 5, 6]), EncoderFailed, "not finite"),
        (rows([1, 1e39, 3], [4, 5, 6]), EncoderFailed, "not finite"),
        (b'{"data": [{"index": 0, "embedding": [NaN]}, {"index": 1, "embedding": [1]}]}', EncoderFailed, "no list of embeddings"),
        (rows([1, 2], [3, 4]), DimensionMismatch, "vectors of 2 numbers, and 3 are wanted"),
    ],
)  # fmt: skip
def test_openai_replies_that_are_no_vectors_are_refused(
    server: Server, db: vecdb.Database, body: Any, error: type[VecdbError], match: str
) -> None:
    docs = db.create_collection("docs", embed=OpenAI("m", dimensions=3))
    server.script = [(200, body, {})]
    with pytest.raises(error, match=match):
        docs.upsert(texts=["tea", "milk"])
    assert docs.count() == 0
    assert len(server.asked) == 1


def test_openai_a_server_that_hangs_is_given_up(server: Server, waits: list[float]) -> None:
    def hang(*_: Any) -> None:
        server.over.wait(30)

    server.script = [hang] * 6
    began = time.monotonic()
    with pytest.raises(EncoderFailed, match=r"no reply within 0\.2 s \(tries: 6\)"):
        OpenAI("m", dimensions=3, timeout=0.2).encode(["tea"])
    assert time.monotonic() - began < 10

    def drip(handler: BaseHTTPRequestHandler, _: Any) -> None:
        with suppress(OSError):
            handler.send_response(200)
            handler.send_header("Content-Length", "100000")
            handler.end_headers()
            while not server.over.wait(0.05):
                handler.wfile.write(b" ")

    server.script = [drip] * 6
    with pytest.raises(EncoderFailed, match="no reply within"):
        OpenAI("m", dimensions=3, timeout=0.2).encode(["tea"])
    assert time.monotonic() - began < 20


def test_openai_where_nobody_listens_the_connection_is_refused(
    server: Server, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1/"
        with pytest.raises(EncoderFailed, match="no connection: .*refused.*tries: 6") as refused:
            OpenAI("m", url).dim  # noqa: B018
    assert KEY not in shown_of(refused.value)
    assert len(waits) == 5


def test_openai_redirects_are_not_followed(server: Server) -> None:
    other = Server()
    try:
        for status in (301, 302, 303, 307, 308):
            server.script = [(status, b"", {"Location": other.url + "/embeddings"})]
            with pytest.raises(EncoderFailed, match=f"status {status}"):
                OpenAI("m", dimensions=3).encode(["tea"])
        assert other.asked == []
    finally:
        other.close()


def test_openai_the_key_is_kept_nowhere(
    server: Server, db: vecdb.Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    encoder = OpenAI("m")
    docs = db.create_collection("docs", embed=encoder)
    docs.upsert(ids=range(len(TEXTS)), texts=TEXTS)
    docs.search("tea")
    assert KEY not in repr(encoder) + str(encoder) + str(vars(encoder)) + encoder.name + encoder.fingerprint + caplog.text
    assert KEY not in str(docs.info()) + str(db._store.snapshot(docs._uuid).schema)
    monkeypatch.setenv("OPENAI_API_KEY", "another")
    encoder.encode(["tea"])
    assert server.headers[-1]["Authorization"] == "Bearer another"
    monkeypatch.delenv("OPENAI_API_KEY")
    encoder.encode(["tea"])
    assert "Authorization" not in server.headers[-1]
    count = len(server.asked)
    for bad in (f"{KEY}\r\nX-Injected: 1", f"{KEY} {KEY}", f"{KEY}é", f"{KEY}\x7f"):
        monkeypatch.setenv("OPENAI_API_KEY", bad)
        with pytest.raises(Unauthenticated, match="characters") as refused:
            encoder.encode(["tea"])
        assert KEY not in shown_of(refused.value)
    assert len(server.asked) == count
    server.script = [(401, {}, {})]
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(Unauthenticated, match="wants a key: set OPENAI_API_KEY"):
        encoder.encode(["tea"])
    with pytest.raises(Unauthenticated, match="wants a key: set OPENAI_API_KEY"):
        OpenAI("m", "https://api.openai.com/v1/").encode(["tea"])  # asks nobody


def test_openai_the_key_is_in_no_file_of_the_database(server: Server, tmp_path: Path) -> None:
    with vecdb.open(tmp_path / "db") as db:
        docs = db.create_collection("docs", embed=OpenAI("m"))
        for at in range(20):
            # Strings that held the key, and are free again, as the buffers of a request are.
            copies = [bytes(bytearray(KEY.encode() * 160)) for _ in range(200)]
            copies.clear()
            docs.upsert(ids=[at], texts=[TEXTS[at % len(TEXTS)]])
    for path in (tmp_path / "db").rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes()


def test_openai_model_server_and_dimensions_make_the_fingerprint(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    made = [OpenAI("m"), OpenAI("n"), OpenAI("m", dimensions=5), OpenAI("m", "https://example.org/v1")]
    assert len({each.fingerprint for each in made}) == 4
    assert OpenAI("m", server.url + "/").fingerprint == made[0].fingerprint
    assert [each.name for each in made] == ["openai:m", "openai:n", "openai:m", "openai:m"]
    assert encoder_of("openai:nomic-embed-text:latest").name == "openai:nomic-embed-text:latest"  # type: ignore[union-attr]
    assert server.asked == []
    monkeypatch.delenv("OPENAI_BASE_URL")
    assert OpenAI("m").base_url == "https://api.openai.com/v1"
    for url in ("ftp://host", "host/v1", "http://", "http://host:port", "http://ho st", "http://host/\x00", "http://[::1"):
        with pytest.raises(InvalidInput, match="base URL"):
            OpenAI("m", url)
    for url in ("http://me:hidden@host/v1", "http://host/v1?key=hidden", "http://host/#hidden"):
        with pytest.raises(InvalidInput, match="no user") as refused:
            OpenAI("m", url)
        assert "hidden" not in shown_of(refused.value)
    for bad in (
        functools.partial(OpenAI, " "),
        functools.partial(OpenAI, "m", dimensions=0),
        functools.partial(OpenAI, "m", timeout=0),
        functools.partial(OpenAI, "m", timeout=float("nan")),
    ):
        with pytest.raises(InvalidInput):
            bad()


def test_openai_another_length_than_before_is_refused(server: Server) -> None:
    encoder = OpenAI("m")
    assert encoder.dim == DIM
    server.script = [lambda _, asked: (200, embeddings(asked, dim=5), {})]
    with pytest.raises(DimensionMismatch, match=f"vectors of 5 numbers, and {DIM}"):
        encoder.encode(["tea"])
