"""The bAbI question answering tasks (Weston et al. 2015), read from their own text files.

A file holds stories. Each line is an id, a space, a text; id 1 begins a story; a line with tabs is a question:
text, answer, ids of its supporting lines. Questions see the sentences before them, and are themselves no sentences.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np

from jaxlm.data.errors import DataError

NAMES = {
    1: "single-supporting-fact",
    2: "two-supporting-facts",
    3: "three-supporting-facts",
    4: "two-arg-relations",
    5: "three-arg-relations",
    6: "yes-no-questions",
    7: "counting",
    8: "lists-sets",
    9: "simple-negation",
    10: "indefinite-knowledge",
    11: "basic-coreference",
    12: "conjunction",
    13: "compound-coreference",
    14: "time-reasoning",
    15: "basic-deduction",
    16: "basic-induction",
    17: "positional-reasoning",
    18: "size-reasoning",
    19: "path-finding",
    20: "agents-motivations",
}

NIL = 0  # the id of no word: what fills up sentences and memories

Words = tuple[str, ...]


class Texts(Protocol):
    """What `read` needs of a data folder: the text of a file by its name below the root."""

    def text(self, name: str) -> str: ...


class Question(NamedTuple):
    """One question with what it may see.

    story     sentences before it, oldest first, lower case, each a tuple of words
    words     of the question
    answer    one item, also where it lists several words ('apple,milk')
    support   places in `story` of the supporting sentences, in the file's order
    task      number of the task
    """

    story: tuple[Words, ...]
    words: Words
    answer: str
    support: tuple[int, ...]
    task: int


def parse(text: str, task: int = 0, name: str = "bAbI") -> list[Question]:
    """Questions of one file's text, in its order. Raises DataError with name and line where the format is broken."""
    questions: list[Question] = []
    story: list[Words] = []
    places: dict[int, int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        label, _, body = line.strip().partition(" ")
        if not label.isdigit() or not body:
            raise DataError(f"{name}, line {number} = {line[:40]!r}: expected an id, a space and a text")
        if int(label) == 1:
            story, places = [], {}
        if "\t" not in body:
            places[int(label)] = len(story)
            story.append(split_words(body))
            continue
        fields = body.split("\t")
        if len(fields) != 3 or any(not s.isdigit() or int(s) not in places for s in fields[2].split()):
            raise DataError(
                f"{name}, line {number} = {body[:60]!r}: expected question, answer and ids of sentences above"
            )
        support = tuple(places[int(s)] for s in fields[2].split())
        questions.append(Question(tuple(story), split_words(fields[0]), fields[1].strip().lower(), support, task))
    return questions


def split_words(sentence: str) -> Words:
    """Lower-case words of a sentence, its final stop or question mark dropped."""
    return tuple(re.sub(r"[.?]\s*$", "", sentence.lower()).split())


def path(task: int, part: str, size: str = "en") -> str:
    """Where a file lies below the data folder, e.g. 'babi/en/qa1_single-supporting-fact_train.txt.gz'."""
    if task not in NAMES or part not in ("train", "test") or size not in ("en", "en-10k"):
        raise DataError(f"bAbI {size!r} task {task!r} {part!r}: expected 'en' or 'en-10k', 1 to 20, 'train' or 'test'")
    return f"babi/{size}/qa{task}_{NAMES[task]}_{part}.txt.gz"


def read(folder: Texts, task: int, part: str, size: str = "en") -> list[Question]:
    """Questions of one task.

    folder   with `text(name)`, e.g. a DataFolder
    part     'train' or 'test'
    size     'en' (1,000 training questions) or 'en-10k' (10,000; the test questions are the same)
    """
    name = path(task, part, size)
    return parse(folder.text(name), task, name)


@dataclass(frozen=True)
class Vocabulary:
    """Words in order; the first, id 0, is no word.   words   ('', 'apple', ...)"""

    words: Words

    @classmethod
    def of(cls, questions: Sequence[Question]) -> "Vocabulary":
        """Every word of stories, questions and answers, sorted."""
        seen = {q.answer for q in questions}
        seen.update(*(q.words for q in questions), *{sentence for q in questions for sentence in q.story})
        return cls(("", *sorted(seen)))

    def __len__(self) -> int:
        return len(self.words)

    @cached_property
    def ids(self) -> dict[str, int]:
        return {word: i for i, word in enumerate(self.words)}

    def encode(self, sentence: Sequence[str], room: int) -> np.ndarray:
        """Ids, filled up with NIL.   (room,) int32. Raises DataError for an unknown word or a sentence too long."""
        if len(sentence) > room or any(word not in self.ids for word in sentence):
            raise DataError(f"sentence {' '.join(sentence)!r}: expected at most {room} words, all in the vocabulary")
        return np.array([self.ids[w] for w in sentence] + [NIL] * (room - len(sentence)), np.int32)


@dataclass(frozen=True)
class Arrays:
    """Questions as arrays; a story is a row of numbers of sentences, because sentences recur.

    sentences   (u, j) int32    ids of the distinct sentences; sentence 0 is empty
    stories     (q, n) int32    sentences oldest first, then 0; of a longer story the last n
    lengths     (q,) int32      sentences of each story that are held
    questions   (q, j) int32    ids
    answers     (q,) int32      ids
    support     (q, n) bool     supporting sentences that are held
    tasks       (q,) int32      numbers of the tasks
    """

    sentences: np.ndarray
    stories: np.ndarray
    lengths: np.ndarray
    questions: np.ndarray
    answers: np.ndarray
    support: np.ndarray
    tasks: np.ndarray


def longest_sentence(questions: Sequence[Question]) -> int:
    """Words of the longest sentence or question."""
    return max(max([len(q.words), *map(len, q.story)]) for q in questions)


def longest_story(questions: Sequence[Question]) -> int:
    """Sentences of the longest story."""
    return max(len(q.story) for q in questions)


def encode(questions: Sequence[Question], vocabulary: Vocabulary, memory: int, room: int | None = None) -> Arrays:
    """Arrays of questions, of one task or of several together.

    memory   n, sentences held of a story
    room     j, words held of a sentence, by default of the longest
    """
    room = longest_sentence(questions) if room is None else room
    numbers: dict[Words, int] = {(): 0}
    stories, support = np.zeros((2, len(questions), memory), np.int32)
    for row, q in enumerate(questions):
        dropped = max(0, len(q.story) - memory)
        for slot, sentence in enumerate(q.story[dropped:]):
            stories[row, slot] = numbers.setdefault(sentence, len(numbers))
        for place in q.support:
            if place >= dropped:
                support[row, place - dropped] = 1
    return Arrays(
        sentences=np.stack([vocabulary.encode(s, room) for s in numbers]),
        stories=stories,
        lengths=np.array([min(len(q.story), memory) for q in questions], np.int32),
        questions=np.stack([vocabulary.encode(q.words, room) for q in questions]),
        answers=np.array([vocabulary.ids[q.answer] for q in questions], np.int32),
        support=support.astype(bool),
        tasks=np.array([q.task for q in questions], np.int32),
    )


def heldout(count: int, share: float = 0.1, seed: int | None = None) -> np.ndarray:
    """Which training questions are held out: the last ones, or with a seed random ones.   (count,) bool"""
    held = np.arange(count) >= round((1 - share) * count)
    return held if seed is None else np.random.default_rng(seed).permutation(held)
