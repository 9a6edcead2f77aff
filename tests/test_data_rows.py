"""Layouts: a batch is a function of (seed, step) alone, and every token of an epoch is there exactly once."""

import itertools
from collections import Counter

import numpy as np
import pytest

from jaxlm.data import Bytes, DataError, Evaluation, Lanes, Rows, TextFiles, pack
from jaxlm.data.text import Text

T = 7
# Runs of rising bytes that begin at different values: neighbours tell where a token came from. None holds a 0.
DOCUMENTS = [
    bytes(1 + (13 * i + j) % 255 for j in range(size)) for i, size in enumerate([1, 40, 3, 7, 8, 6, 25, 2, 14, 55])
]
STREAM = pack(DOCUMENTS, Bytes())


@pytest.fixture(params=[Rows, Lanes])
def layout(request):
    return request.param(STREAM, T, seed=3)


def steps(layout, size):
    """Batches of one epoch."""
    return layout.epoch // size if isinstance(layout, Rows) else layout.steps(size)


def same(got, want):
    assert set(got) == set(want) == {"tokens", "starts", "targets", "weights"}
    for name in want:
        np.testing.assert_array_equal(got[name], want[name], err_msg=name, strict=True)


def pairs(batch):
    """Counted (token, target) pairs."""
    kept = batch["weights"] == 1
    return Counter(zip(batch["tokens"][kept].tolist(), batch["targets"][kept].tolist(), strict=True))


def all_pairs(documents=DOCUMENTS):
    """What any epoch holds: each byte of each document after the byte before it, the first after the begin token."""
    return sum((Counter(zip(b"\0" + document, document, strict=False)) for document in documents), Counter())


def test_shapes_and_types(layout):
    batch = layout.batch(0, 4)
    assert {n: (v.shape, v.dtype.name) for n, v in batch.items()} == {
        "tokens": ((4, T), "int32"),
        "starts": ((4, T), "bool"),
        "targets": ((4, T), "int32"),
        "weights": ((4, T), "float32"),
    }


def test_a_batch_is_a_function_of_seed_and_step(layout):
    first = [layout.batch(step, 4) for step in range(30)]  # several epochs
    again = type(layout)(STREAM, T, seed=3)
    for step in (29, 0, 17, 3, 17):  # in any order, from any step
        same(again.batch(step, 4), first[step])
    other = type(layout)(STREAM, T, seed=4)
    assert any((other.batch(step, 4)["tokens"] != first[step]["tokens"]).any() for step in range(3))


@pytest.mark.parametrize("cuts", [[0, 8], [0, 4, 8], [0, 2, 4, 6, 8], [0, 1, 1, 8]])
def test_parts_are_the_whole_batch(layout, cuts):
    for step in range(8):  # an epoch ends inside
        parts = [layout.batch(step, 8, slice(a, b)) for a, b in itertools.pairwise(cuts)]
        same({n: np.concatenate([part[n] for part in parts]) for n in parts[0]}, layout.batch(step, 8))


@pytest.mark.parametrize("epoch", [0, 1, 2])
def test_every_token_once_an_epoch(layout, epoch):
    size = 1 if isinstance(layout, Rows) else 4
    count = steps(layout, size)
    batches = [layout.batch(step, size) for step in range(epoch * count, (epoch + 1) * count)]
    assert sum(map(pairs, batches), Counter()) == all_pairs()
    assert sum(b["weights"].sum() for b in batches) == STREAM.scored == STREAM.bytes == sum(map(len, DOCUMENTS))


def test_rows_are_read_off_one_stream():
    rows = Rows(STREAM, T, seed=3)
    epoch = [rows.row(i) for i in range(rows.epoch)]
    order = np.argsort([find(rows, i) for i in range(rows.epoch)])
    stream = np.concatenate([epoch[i]["tokens"] for i in order])[: len(STREAM.tokens)]
    found = stream.astype(np.uint8).tobytes().split(b"\0")[1:]
    assert Counter(found) == Counter(DOCUMENTS) and found != DOCUMENTS
    targets = np.concatenate([epoch[i]["targets"] for i in order])[: len(stream) - 1]
    np.testing.assert_array_equal(targets, stream[1:])
    assert list(order) != sorted(order)


def find(rows, i):
    """The place of row i of the first epoch in that epoch's stream, by its number."""
    return rows._epochs(0).rows[i]


def test_epochs_differ():
    rows = Rows(STREAM, T, seed=3)
    one, two = (np.stack([rows.row(e * rows.epoch + i)["tokens"] for i in range(rows.epoch)]) for e in (0, 1))
    assert (one != two).any()


def test_masks_and_starts():
    rows = Rows(STREAM, T, seed=0).batch(0, 60)
    assert rows["starts"][:, 0].all()
    begins = rows["tokens"] == 0
    np.testing.assert_array_equal(rows["starts"][:, 1:], begins[:, 1:])
    np.testing.assert_array_equal(rows["weights"] == 0, rows["targets"] == 0)
    np.testing.assert_array_equal(rows["tokens"][:, 1:], rows["targets"][:, :-1])


def test_lanes_go_on():
    lanes = Lanes(STREAM, T, seed=5)
    size, count = 3, lanes.steps(3)
    batches = [lanes.batch(step, size) for step in range(2 * count)]
    for before, after in itertools.pairwise(batches):
        joined = before["targets"][:, -1] == after["tokens"][:, 0]
        assert joined.all() or after is batches[count]
    for i, batch in enumerate(batches):
        np.testing.assert_array_equal(batch["starts"][:, 1:], batch["tokens"][:, 1:] == 0)
        np.testing.assert_array_equal(batch["starts"][:, 0], (batch["tokens"][:, 0] == 0) | (i % count == 0))
    joined = np.concatenate([b["tokens"] for b in batches[:count]], axis=1).reshape(-1)[: len(STREAM.tokens)]
    assert Counter(joined.astype(np.uint8).tobytes().split(b"\0")[1:]) == Counter(DOCUMENTS)


@pytest.mark.parametrize("length, overlap", [(7, 0), (7, 3), (7, 6), (170, 0), (171, 0), (172, 5), (1000, 0), (10, 9)])
def test_evaluation_scores_every_token_once(length, overlap):
    rows = Evaluation(STREAM, length, overlap)
    for size in (1, 4):
        batches = [rows.batch(step, size) for step in range(rows.steps(size))]
        assert sum(map(pairs, batches), Counter()) == all_pairs()
        assert sum(b["weights"].sum() for b in batches) == rows.stream.scored
        assert all(b["tokens"].shape == (size, length) and b["starts"][:, 0].all() for b in batches)
    assert rows.batch(rows.rows - 1, 1)["weights"].any() and not rows.batch(rows.rows, 1)["weights"].any()


def test_overlap_is_context():
    rows = Evaluation(STREAM, 10, 4)
    batch = rows.batch(0, rows.rows)
    assert batch["weights"][0].sum() == 9 and not batch["weights"][1:, :4].any()
    np.testing.assert_array_equal(batch["tokens"][1:, :4], batch["tokens"][:-1, 6:])
    order = batch["targets"][batch["weights"] == 1].astype(np.uint8).tobytes()
    assert order == b"".join(DOCUMENTS)


def test_bits_per_byte():
    nats = STREAM.scored * 8 * np.log(2)  # uniform over bytes
    assert (
        abs(STREAM.bits_per_byte(nats) - 8) < 1e-12
        and abs(STREAM.bits_per_byte(nats / 4, STREAM.scored / 4) - 8) < 1e-12
    )


def test_a_byte_zero_inside_a_document_is_no_start():
    batch = Evaluation(pack([b"a\0b", b"c"], Bytes()), 6).batch(0, 1)
    assert batch["tokens"].tolist() == [[0, 97, 0, 98, 0, 99]]
    assert batch["starts"].tolist() == [[True, False, False, False, True, False]]
    assert batch["weights"].tolist() == [[1, 1, 1, 0, 1, 0]]


def test_the_order_is_golden():
    """The order of data is part of a run: a change here breaks the resuming of every run begun before it."""
    assert Rows(STREAM, T, seed=3).batch(2, 2)["tokens"].tolist() == GOLDEN
    assert Rows(STREAM, T, seed=2**64 - 1).batch(10**9, 1)["tokens"].shape == (1, T)


GOLDEN = [[43, 44, 45, 46, 47, 48, 49], [154, 155, 156, 157, 158, 159, 160]]


def test_text_puts_it_together(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("a line of text\n" * 100)
    text = Text(TextFiles(str(path)), length=16)
    assert text == Text(TextFiles(str(path)), Bytes(), 16, "rows") and text.vocab == 256
    assert isinstance(text.training(1), Rows) and isinstance(Text(text.corpus, layout="lanes").training(1), Lanes)
    held = text.evaluation(overlap=8)
    assert (held.length, held.stream.bytes, held.stream.scored) == (16, 150, 150)
    assert text.evaluation(64).length == 64


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: Rows(STREAM, 0), "length=0: expected at least 1 token a row"),
        (lambda: Rows(STREAM, 171), "length=171: the text has 171 tokens; expected at least 172"),
        (lambda: Lanes(STREAM, 5, seed=-1), r"seed=-1: expected 0 to 2\*\*64 - 1"),
        (lambda: Evaluation(STREAM, 8, 8), "overlap=8: expected 0 to length - 1 = 7"),
        (lambda: Rows(STREAM, T).batch(-1, 2), "step=-1: expected 0 or more"),
        (lambda: Lanes(STREAM, T).batch(0, 0), "size=0: expected at least one row a batch"),
        (lambda: Rows(STREAM, T).batch(0, 4, slice(None, None, -1)), "part=.*: expected rows in ascending order"),
        (lambda: pack([b"", b""], Bytes()), "documents: 2 without any text; expected at least one byte"),
        (lambda: Text(length=0), "length=0: expected at least 1 token a row"),
    ],
)
def test_bad_values_are_named(build, message):
    with pytest.raises(DataError, match=message):
        build()
