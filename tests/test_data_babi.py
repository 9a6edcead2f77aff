"""bAbI's file format, arrays of it, and the counts of the real files."""

import numpy as np
import pytest

from jaxlm.data import DataError
from jaxlm.data.babi import NAMES, Vocabulary, encode, heldout, longest_sentence, longest_story, parse, path, read

TEXT = """\
1 Mary moved to the bathroom.
2 Where is Mary? \tbathroom\t1
3 John got the milk there.
4 John got the Apple.
5 What is John carrying?\tapple,milk\t4 3
1 Mary is in the garden.
2 Where is Mary?\tgarden\t1
"""


def test_reads_the_format():
    first, second, third = parse(TEXT, 8)
    assert first.story == (("mary", "moved", "to", "the", "bathroom"),)
    assert (first.words, first.answer, first.support, first.task) == (("where", "is", "mary"), "bathroom", (0,), 8)
    # Ids count question lines too: line 3 is the second sentence. Several words are one answer.
    assert len(second.story) == 3 and second.support == (2, 1) and second.answer == "apple,milk"
    assert second.story[2] == ("john", "got", "the", "apple")
    assert third.story == (("mary", "is", "in", "the", "garden"),) and third.support == (0,)


@pytest.mark.parametrize(
    "line", ["no id.", "3", "1 Where?\tthere", "1 Where?\tthere\t1", "1 Where?\tthere\tone", "1 a\tb\t\tc"]
)
def test_a_broken_line_is_named(line):
    with pytest.raises(DataError, match=r"made up, line 2 = .*expected"):
        parse(f"1 It is here.\n{line}\n", name="made up")


def test_arrays_hold_what_the_questions_say():
    questions = parse(TEXT)
    vocabulary = Vocabulary.of(questions)
    arrays = encode(questions, vocabulary, memory=2)
    word = np.array(vocabulary.words)
    assert vocabulary.words[0] == "" and len(vocabulary) == len(set(vocabulary.words)) == 18

    def story(row):
        return [" ".join(w for w in word[ids] if w) for ids in arrays.sentences[arrays.stories[row]]]

    assert story(0) == ["mary moved to the bathroom", ""]
    assert story(1) == ["john got the milk there", "john got the apple"]  # the last two
    assert arrays.lengths.tolist() == [1, 2, 1]
    assert arrays.support.tolist() == [[True, False], [True, True], [True, False]]
    assert word[arrays.answers].tolist() == ["bathroom", "apple,milk", "garden"]
    assert [w for w in word[arrays.questions[1]] if w] == ["what", "is", "john", "carrying"]
    assert len(arrays.sentences) == 5 and not arrays.sentences[0].any()


def test_what_does_not_fit_is_named():
    questions = parse(TEXT)
    with pytest.raises(DataError, match="at most 4 words"):
        encode(questions, Vocabulary.of(questions), 2, room=4)
    with pytest.raises(DataError, match="in the vocabulary"):
        encode(questions, Vocabulary.of(questions[2:]), 2)
    with pytest.raises(DataError, match="'en-20k'"):
        path(1, "train", "en-20k")


def test_a_tenth_is_held_out():
    assert heldout(1000).nonzero()[0].tolist() == list(range(900, 1000))
    mixed = heldout(1000, seed=3)
    assert mixed.sum() == 100 and mixed[:900].any() and (mixed == heldout(1000, seed=3)).all()


@pytest.mark.data
def test_the_real_files(data_folder):
    """Counts of the archive; support is above its question; answers of tasks 8 and 19 are lists."""
    words = set()
    for task in (1, 8, 15, 19):
        train, test = (read(data_folder, task, part) for part in ("train", "test"))
        assert len(train) == len(test) == 1000
        assert all(q.support and max(q.support) < len(q.story) for q in train + test)
        assert any("," in q.answer for q in train) == (task in (8, 19))
        words |= set(Vocabulary.of(train + test).words)
        if task == 1:
            assert longest_story(train) == 10 and longest_sentence(train + test) == 6
            assert all(q.answer in q.story[q.support[0]] for q in train)
    assert NAMES[19] == "path-finding" and {"s,e", "n,w", "", "wolf"} <= words
