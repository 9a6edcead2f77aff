"""Memory Networks: facts stored whole, looked up by hard argmax hop after hop, trained by margins on given facts."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxlm.errors import ShapeError
from jaxlm.initializers import Constant, Normal
from jaxlm.module import Module, Spec
from jaxlm.typing import Array, Params, Tree

FACT, ASKED, FOUND = 0, 1, 2  # a word's slot in y, in the question, in a fact that was found
Given = Array | None  # what may be left out
MATCHES = ("off", "fixed", "learned", "features")


class Stories(NamedTuple):
    """Questions about stories, with what is known of their answers when training.

    question   (b, f)         features I(x): f = |W|, or 3|W| with context
    memory     (b, s, f)      features of the facts, oldest first
    count      (b,) int       facts that are there
    facts      (b, k) int     supporting facts, one a hop
    answer     (b,) int       a word
    """

    question: Array
    memory: Array
    count: Array
    facts: Array
    answer: Array


class Reply(NamedTuple):
    """facts (b, k) int, what was looked up (the last is the response where R copies);   scores (b, |W|) of the words"""

    facts: Array
    scores: Array


class Query(NamedTuple):
    """U Φ_x of the question and the facts found so far (b, n), their joint bag (b, |W|), the age of the last (b,)."""

    embedded: Array
    bag: Array
    age: Array


class MemNN(Module):
    """Memory Network on bags of words (Weston et al. 2015): I reads, G writes, O looks up k facts, R names a word.

    o_j = argmax_i s_O([x, m_o1 .. m_o(j-1)], m_i)        r = argmax_w s_R([x, m_o1 .. m_ok], w)
    s(x, y) = Φ_x(x)ᵀ Uᵀ U Φ_y(y)                          U_O and U_R apart, D = 3|W|, 5|W| with context

    words     |W|
    width     n, rows of U
    hops      k
    time      pairwise scores with write times: s_Ot(x, y, y') = Φ_x(x)ᵀ Uᵀ U (Φ_y(y) - Φ_y(y') + Φ_t(x, y, y')) > 0
              prefers y; Φ_t: x after y, x after y', y after y' (section 3.4)
    context   words also stand by their neighbours, so that unseen ones can be read (section 3.5)
    match     'fixed', 'learned': λ (bag overlap of x and y) is added to the scores; 'features': |W| more dimensions, on
              for words that x and y share (section 3.6)
    lam       λ, or its initial value
    margin    γ
    """

    words: int
    width: int = 100
    hops: int = 1
    time: bool = False
    context: bool = False
    match: str = "off"
    lam: float = 0.1
    margin: float = 0.1

    def __post_init__(self):
        self.check(self.hops >= 1, "hops", "at least 1")
        self.check(self.match in MATCHES, "match", f"one of {', '.join(MATCHES)}")

    @property
    def features(self) -> int:
        """f, the size of I(x)."""
        return 3 * self.words if self.context else self.words

    def params(self):
        output = self._table()
        if self.time:
            output["time"] = Spec((3, self.width), (None, "embed"), Normal(0.1))
        return {"output": output, "response": self._table()}

    def _table(self) -> dict[str, Spec]:
        # A word's own product with itself is about 1 then, ten times the margin and what chance gives other pairs.
        n, std = self.width, Normal(self.width**-0.5)
        table = {"slots": Spec((3, self.words, n), (None, "vocab", "embed"), std)}
        if self.context:
            table["context"] = Spec((2 * self.words, n), ("vocab", "embed"), std)
        if self.match == "features":
            table["match"] = Spec((self.words, n), ("vocab", "embed"), std)
        if self.match == "learned":
            table["lam"] = Spec((), (), Constant(self.lam))
        return table

    # I and G

    def read(self, bags: Array, neighbours: Given = None) -> Array:
        """I: the features of sentences; with context, the bag and the bags of its words' left and right neighbours.

        bags         (..., |W|)       counts
        neighbours   (2, |W|, |W|)    see `jaxlm.data.bags.neighbours`; none: no context is known
        ->           (..., f)
        """
        if bags.shape[-1] != self.words:
            raise ShapeError(f"bags: {bags.shape[-1]} words, expected MemNN.words = {self.words}")
        if not self.context:
            return bags
        sides = (jnp.zeros_like(bags),) * 2 if neighbours is None else (bags @ neighbours[0], bags @ neighbours[1])
        return jnp.concatenate([bags, *sides], -1)

    def start(self, batch: int, room: int) -> Tree:
        """An empty memory for `room` facts: facts (b, s, f), count (b,)."""
        return {"facts": jnp.zeros((batch, room, self.features)), "count": jnp.zeros((batch,), jnp.int32)}

    def write(self, memory: Tree, features: Array) -> Tree:
        """G: put one fact a row, (b, f), into the next free slot. A row without a free slot turns NaN."""
        facts, count = memory["facts"], memory["count"]
        free = jnp.arange(facts.shape[1])[None] == count[:, None]
        facts = jnp.where(free[..., None], features[:, None], facts)
        full = (count >= facts.shape[1])[:, None, None]
        return {"facts": jnp.where(full, jnp.asarray(jnp.nan, facts.dtype), facts), "count": count + 1}

    # scores

    def _embed(self, table: Params, slot: int, features: Array, known: Given) -> Array:
        own = features[..., : self.words]
        out = (own if known is None else own * known) @ table["slots"][slot]
        return out + features[..., self.words :] @ table["context"] if self.context else out

    def query(
        self, table: Params, question: Array, found: Array, ages: Array, newest: int, known: Given = None
    ) -> Query:
        """[x, m_o1 ..].

        table     params['output'] or params['response']
        question  (b, f)
        found     (b, j, f)      facts found so far, their slots `ages` (b, j)
        newest    an age above all slots: that of the question
        known     (|W|,) or (b, |W|)      0 for words that are to be read by their context alone
        """
        known = None if known is None else jnp.broadcast_to(known, (len(question), self.words))
        past = jnp.sum(found, 1)
        embedded = self._embed(table, ASKED, question, known) + self._embed(table, FOUND, past, known)
        bag = (question + past)[:, : self.words]
        age = ages[:, -1] if ages.shape[1] else jnp.full((len(question),), newest, jnp.int32)
        return Query(embedded, bag, age)

    def score(self, table: Params, query: Query, ys: Array, known: Given = None) -> Array:
        """s(x, y).   ys (b, s, f), or (1, s, f) for all rows -> (b, s)"""
        known = None if known is None else jnp.broadcast_to(known, (len(query.bag), self.words))[:, None]
        embedded = self._embed(table, FACT, ys, known)
        scores = (query.embedded[:, None] @ embedded.swapaxes(1, 2))[:, 0]
        bags = ys[..., : self.words]
        if self.match in ("fixed", "learned"):
            lam = table["lam"] if self.match == "learned" else jnp.asarray(self.lam, scores.dtype)
            scores = scores + lam * (query.bag[:, None] @ bags.swapaxes(1, 2))[:, 0]
        if self.match == "features":
            shared = jnp.minimum(query.bag[:, None], bags)
            scores = scores + jnp.sum(shared * (query.embedded @ table["match"].T)[:, None], -1)
        return scores

    def timing(self, table: Params, query: Query, y: Array, other: Array) -> Array:
        """Φ_x(x)ᵀ Uᵀ U Φ_t(x, y, y'), the part of s_Ot that the write times give.   y, other: slots (b,) -> (b,)

        The question comes after every fact; once facts are found, x is as old as the last of them. A feature is on for
        'after', not for 'before': a question is before no fact, so that all three would be off for two facts in the
        order in which `lookup` meets them, and nothing could make it prefer the newer.
        """
        after = jnp.stack([query.age > y, query.age > other, y > other], -1)
        return jnp.sum((query.embedded @ table["time"].T) * after.astype(query.embedded.dtype), -1)

    # O and R

    def lookup(
        self, table: Params, query: Query, memory: Array, count: Array, known: Given = None, candidates: Given = None
    ) -> Array:
        """One hop: the slot of the best fact.   memory (b, s, f), count (b,), candidates (b, s) bool -> (b,)

        With write times it is one pass from the oldest fact: the next one takes the place of the winner so far if
        s_Ot(x, next, winner) > 0 (algorithm 1). The first of equals wins.
        """
        scores = self.score(table, query, memory, known)
        slots = jnp.arange(memory.shape[1], dtype=jnp.int32)
        open_ = slots[None] < count[:, None]
        if candidates is not None:
            narrowed = open_ & candidates
            open_ = jnp.where(jnp.any(narrowed, 1, keepdims=True), narrowed, open_)  # an empty bucket hides nothing
        if not self.time:
            return jnp.argmax(jnp.where(open_, scores, -jnp.inf), 1).astype(jnp.int32)

        def compare(winner: tuple[Array, Array], challenger: tuple[Array, Array, Array]):
            slot, best = winner
            new, score, there = challenger
            new = jnp.broadcast_to(new, slot.shape)
            wins = there & (score - best + self.timing(table, query, new, slot) > 0)
            return (jnp.where(wins, new, slot), jnp.where(wins, score, best)), None

        first = jnp.argmax(open_, 1).astype(jnp.int32)
        best = jnp.take_along_axis(scores, first[:, None], 1)[:, 0]
        later = open_ & (slots[None] > first[:, None])
        (slot, _), _ = jax.lax.scan(compare, (first, best), (slots, scores.T, later.T))
        return slot

    def output(
        self,
        params: Params,
        question: Array,
        memory: Array,
        count: Array,
        known: Given = None,
        candidates: Given = None,
    ) -> Array:
        """O: the slots of the k facts.   question (b, f), memory (b, s, f), count (b,) -> (b, k) int"""
        found = jnp.zeros((len(question), 0), jnp.int32)
        for _ in range(self.hops):
            query = self.query(params["output"], question, _at(memory, found), found, memory.shape[1], known)
            slot = self.lookup(params["output"], query, memory, count, known, candidates)
            found = jnp.concatenate([found, slot[:, None]], 1)
        return found

    def response(
        self, params: Params, question: Array, memory: Array, found: Array, known: Given = None, words: Given = None
    ) -> Array:
        """R: the scores of all words, given the facts found.   found (b, k) -> (b, |W|)

        words   (|W|, f)      features of single words, by default without context
        """
        words = self.read(jnp.eye(self.words, dtype=question.dtype)) if words is None else words
        query = self.query(params["response"], question, _at(memory, found), found, memory.shape[1], known)
        return self.score(params["response"], query, words[None], known)

    def apply(
        self,
        params: Params,
        question: Array,
        memory: Array,
        count: Array,
        known: Given = None,
        words: Given = None,
        candidates: Given = None,
    ) -> Reply:
        """O, then R."""
        found = self.output(params, question, memory, count, known, candidates)
        return Reply(found, self.response(params, question, memory, found, known, words))

    # training

    def sample(self, key: Array, stories: Stories) -> tuple[Array, Array]:
        """One wrong fact a hop (b, k) and one wrong word (b,), uniform; the fact itself where a story has no other."""
        facts, answer = stories.facts, stories.answer
        hops, word = jax.random.split(key)
        others = jnp.maximum(stories.count - 1, 1)[:, None]
        wrong = jax.random.randint(hops, facts.shape, 0, others, jnp.int32)
        wrong = jnp.where(stories.count[:, None] > 1, wrong + (wrong >= facts).astype(jnp.int32), facts)
        guess = jax.random.randint(word, answer.shape, 0, self.words - 1, jnp.int32)
        return wrong, guess + (guess >= answer).astype(jnp.int32)

    def loss(
        self,
        params: Params,
        stories: Stories,
        wrong_facts: Array,
        wrong_answer: Array,
        known: Given = None,
        words: Given = None,
    ) -> Array:
        """Margin loss of each question, later hops and R given the true facts (eq. 6-8; section 3.4 with time).

        wrong_facts    (b, k)     f̄ of each hop; a hop whose f̄ is the fact itself counts nothing
        wrong_answer   (b,)       r̄
        ->             (b,)
        """
        question, memory, _, facts, answer = stories
        table, newest = params["output"], memory.shape[1]
        total = jnp.zeros(answer.shape, question.dtype)
        for hop in range(self.hops):
            query = self.query(table, question, _at(memory, facts[:, :hop]), facts[:, :hop], newest, known)
            pair = facts[:, hop], wrong_facts[:, hop]
            right, wrong = self.score(table, query, _at(memory, jnp.stack(pair, 1)), known).T
            gaps = [right - wrong]
            if self.time:
                back = right - wrong - self.timing(table, query, *pair[::-1])  # -s_Ot(x, f̄, m_o)
                gaps = [right - wrong + self.timing(table, query, *pair), back]
            hinges = sum(jax.nn.relu(self.margin - gap) for gap in gaps)
            total = total + jnp.where(pair[0] == pair[1], 0, hinges)
        scores = self.response(params, question, memory, facts, known, words)
        right, wrong = (jnp.take_along_axis(scores, a[:, None], 1)[:, 0] for a in (answer, wrong_answer))
        return total + jax.nn.relu(self.margin - right + wrong)

    def forget(self, key: Array, batch: int, rate: float) -> Array:
        """`known` of a batch in which every word is taken for unseen with some probability.   -> (b, |W|)"""
        return jax.random.bernoulli(key, 1 - rate, (batch, self.words)).astype(jnp.float32)


def _at(memory: Array, slots: Array) -> Array:
    """memory (b, s, f), slots (b, j) -> (b, j, f)"""
    return jnp.take_along_axis(memory, slots[..., None], 1)
