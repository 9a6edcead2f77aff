"""Recall: what stood somewhere in the sequence is asked for later."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.tasks.base import Sample, Task, ask_last, below, distinct, over
from jaxlm.typing import Array


class MQAR(Task):
    """Multi-query associative recall: k_1 v_1 ... k_n v_n, then each key once more, where its value is asked.

    vocab     V; keys are tokens 1 .. V//2 - 1, values V//2 .. V - 1, both without repetition
    pairs     n
    power     a: slot i of those after the pairs holds a query with odds i^(a-1); a slot is two places, the first asks
    random    what is neither pair nor query is a random token instead of 0 (a key of the sequence becomes 0, so that
              every key after the pairs asks)

    Source: Arora et al. 2024 (Zoology), appendix on synthetic data.
    """

    vocab: int = 64
    pairs: int = 8
    power: float = 0.01
    random: bool = False

    paper = "Arora et al. 2024"

    def __post_init__(self):
        self.check(self.pairs > 0, "pairs", "at least 1")
        self.check(self.vocab // 2 > self.pairs, "vocab", f"at least {2 * self.pairs + 2}: a key and a value per pair")
        self.check(self.power > 0, "power", "a positive number")

    @property
    def classes(self) -> int:
        return self.vocab

    @property
    def shortest(self) -> int:
        return 4 * self.pairs

    def draw(self, key: Array, length: int) -> Sample:
        n, half = self.pairs, self.vocab // 2
        of_keys, of_values, of_slots, of_filler = jax.random.split(key, 4)
        keys, values = 1 + distinct(of_keys, half - 1, n), half + distinct(of_values, self.vocab - half, n)
        slots = (length - 2 * n) // 2
        odds = jnp.arange(1, slots + 1, dtype=jnp.float32) ** (self.power - 1)
        # The largest log-odds plus Gumbel noise are draws without replacement, one after the other.
        noise = jax.random.gumbel(of_slots, (slots,), jnp.float32)
        asked = 2 * n + 2 * jax.lax.top_k(jnp.log(odds) + noise, n)[1]
        filler = jnp.zeros(length, jnp.int32)
        if self.random:
            filler = below(of_filler, self.vocab, (length,))
            filler = jnp.where((filler[:, None] == keys[None]).any(axis=1), 0, filler)
        pairs = jnp.stack([keys, values], axis=1).reshape(-1)
        tokens = filler.at[: 2 * n].set(pairs).at[asked].set(keys)
        targets = jnp.zeros(length, jnp.int32).at[asked].set(values)
        return Sample(tokens, targets, jnp.zeros(length, jnp.float32).at[asked].set(1.0))

    def shares(self, length: int) -> np.ndarray:
        return over(self.vocab, self.vocab // 2, self.vocab)


class AssociativeRecall(Task):
    """Keys with their values, a key always with the same one, then a key that has been: its value is asked.

    keys    n, as many values; keys are tokens 0 .. n-1, values n .. 2n-1, 2n a blank ahead of an even length

    Source: Ba et al. 2016; Fu et al. 2023 (H3).
    """

    keys: int = 16

    paper = "Fu et al. 2023"

    def __post_init__(self):
        self.check(self.keys > 1, "keys", "at least 2")

    @property
    def vocab(self) -> int:
        return 2 * self.keys + 1

    @property
    def classes(self) -> int:
        return self.vocab

    @property
    def shortest(self) -> int:
        return 3

    def draw(self, key: Array, length: int) -> Sample:
        of_values, of_keys, of_query = jax.random.split(key, 3)
        pairs = (length - 1) // 2
        values = self.keys + below(of_values, self.keys, (self.keys,))
        keys = below(of_keys, self.keys, (pairs,))
        query = keys[below(of_query, pairs)]
        told = jnp.stack([keys, values[keys]], axis=1).reshape(-1)
        blank = jnp.full((length - 1 - 2 * pairs,), 2 * self.keys, jnp.int32)
        return ask_last(jnp.concatenate([blank, told, query[None]]), values[query])

    def shares(self, length: int) -> np.ndarray:
        return over(self.vocab, self.keys, 2 * self.keys)


class Induction(Task):
    """Random tokens with one trigger among them and one at the end: what followed the first is asked.

    vocab    n, the trigger is token n-1

    Source: Gu & Dao 2023 (Mamba), induction heads.
    """

    vocab: int = 16

    paper = "Gu & Dao 2023"

    def __post_init__(self):
        self.check(self.vocab > 2, "vocab", "at least 3: the trigger and two others")

    @property
    def classes(self) -> int:
        return self.vocab

    @property
    def shortest(self) -> int:
        return 3

    def draw(self, key: Array, length: int) -> Sample:
        of_tokens, of_place = jax.random.split(key)
        place = below(of_place, length - 2)
        tokens = below(of_tokens, self.vocab - 1, (length,))
        return ask_last(tokens.at[place].set(self.vocab - 1).at[-1].set(self.vocab - 1), tokens[place + 1])

    def shares(self, length: int) -> np.ndarray:
        return over(self.vocab, 0, self.vocab - 1)


class SelectiveCopying(Task):
    """Data tokens scattered in noise, then as many blanks: at each the next data token is asked, in order.

    vocab        n: data are tokens 0 .. n-3, the noise is n-2, the blank n-1
    items        data tokens
    selective    False: the data come first (plain copying, which fixed filters solve)

    Source: Gu & Dao 2023 (Mamba).
    """

    vocab: int = 16
    items: int = 16
    selective: bool = True

    paper = "Gu & Dao 2023"

    def __post_init__(self):
        self.check(self.vocab > 3, "vocab", "at least 4: two data tokens, noise and blank")
        self.check(self.items > 0, "items", "at least 1")

    @property
    def classes(self) -> int:
        return self.vocab

    @property
    def shortest(self) -> int:
        return 2 * self.items

    def draw(self, key: Array, length: int) -> Sample:
        of_data, of_places = jax.random.split(key)
        room = length - self.items
        data, places = below(of_data, self.vocab - 2, (self.items,)), jnp.arange(self.items, dtype=jnp.int32)
        if self.selective:
            places = jnp.sort(distinct(of_places, room, self.items))
        asked = jnp.arange(length) >= room
        tokens = jnp.where(asked, self.vocab - 1, self.vocab - 2).at[places].set(data)
        targets = jnp.zeros(length, jnp.int32).at[room:].set(data)
        return Sample(tokens.astype(jnp.int32), targets, asked.astype(jnp.float32))

    def shares(self, length: int) -> np.ndarray:
        return over(self.vocab, 0, self.vocab - 2)
