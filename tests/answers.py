"""The answers of every synthetic task a second time, from the tokens alone: plain Python, one token after the other.

Each function gives, per token, the answer asked there, or None where nothing is asked.
"""

import re
from itertools import groupby, pairwise, product

from jaxlm.tasks.passkey import WORDS


def parity(task, tokens):
    return [tokens[: i + 1].count(1) % 2 for i in range(len(tokens))]


def even_pairs(task, tokens):
    if task.symbols > 2:
        return [None] + [int(x != tokens[0]) for x in tokens[1:]]
    unlike = [int(a != b) for a, b in pairwise(tokens)]
    return [None] + [sum(unlike[: i + 1]) % 2 for i in range(len(unlike))]


def total(task, tokens):
    return [sum(tokens[: i + 1]) % task.modulus for i in range(len(tokens))]


def cycle(task, tokens):
    ring, out = list(range(task.states)), []
    for move in tokens:
        ring = {0: ring[-1:] + ring[:-1], 1: ring, 2: ring[1:] + ring[:1]}[move]
        out.append(ring[0])
    return out


def arithmetic(task, tokens):
    """By Python's own precedence."""
    return [None if i % 2 else value(task, tokens[: i + 1]) for i in range(len(tokens))]


def value(task, tokens):
    text = "".join(str(x) if x < task.modulus else "+-*"[x - task.modulus] for x in tokens)
    return eval(text) % task.modulus


def word_problem(task, tokens):
    """Points are carried along by the permutations, the last factor first."""
    from jaxlm.tasks.groups import elements

    group = [tuple(g) for g in elements(task.group).tolist()]
    words, out = [], []
    for i, token in enumerate(tokens):
        if i % task.spread == 0:
            words.append(group[task.allowed[token]])
        else:
            assert token == task.vocab - 1
        image = list(range(len(group[0])))
        for g in reversed(words):
            image = [g[point] for point in image]
        out.append(group.index(tuple(image)) if (i + 1) % task.spread == 0 else None)
    return out


def flip_flop(task, tokens):
    told, bits, out = tokens[::2], tokens[1::2], []
    assert told[0] == 0 and told[-1] == 1
    for i, what in enumerate(told):
        wrote = max(j for j in range(i + 1) if told[j] == 0)
        out += [bits[wrote] - 3 if what == 1 else None, None]
        assert what != 1 or i >= len(bits) or bits[i] == bits[wrote]
    return out[: len(tokens)]


def dyck(task, tokens):
    stack, out = [], []
    for token in tokens:
        if token == 2 * task.kinds:
            assert not stack
        elif token < task.kinds:
            stack.append(token)
        else:
            assert stack.pop() == token - task.kinds
        assert len(stack) <= task.depth
        out.append((1 + stack[-1] + task.kinds * (len(stack) == task.depth)) if stack else 0)
    return out


def nested(n):
    return f"(a{nested(n - 1)}b)*" if n else ""


# A regular expression, the symbols, and continuations of which one makes a word of any prefix that can become one.
WORDS_OF = {
    **{f"D{n}": (nested(n), "ab", ["b" * i for i in range(n + 1)]) for n in (2, 3, 4, 12)},
    "aa*bb*cc*dd*ee*": ("aa*bb*cc*dd*ee*", "abcde", ["", "e", "de", "cde", "bcde"]),
    "{a,b}*d{b,c}*": ("[ab]*d[bc]*", "abcd", ["", "d"]),
    "{0,1,2}*02*": ("[012]*02*", "012", ["", "0"]),
    "tomita2": ("(10)*", "01", ["", "0"]),
    "tomita4": ("((?!000)[01])*", "01", [""]),
    "tomita7": ("0*1*0*1*", "01", [""]),
}


def star_free(task, tokens):
    pattern, symbols, tails = WORDS_OF[task.language]
    whole, end = re.compile(pattern), len(symbols)
    known = {}

    def follows(prefix):
        def lives(word):
            return any(whole.fullmatch(word + tail) for tail in tails)

        legal = [i for i, x in enumerate(symbols) if lives(prefix + x)]
        return tuple(legal + [end] * bool(whole.fullmatch(prefix)))

    prefix, out = "", []
    for token in tokens:
        known[prefix] = known.get(prefix) or follows(prefix)
        assert token in known[prefix]
        prefix = "" if token == end else prefix + symbols[token]
        known[prefix] = known.get(prefix) or follows(prefix)
        out.append(task.sets.index(known[prefix]))
    return out


def mqar(task, tokens):
    pairs, half = 2 * task.pairs, task.vocab // 2
    told = dict(zip(tokens[:pairs:2], tokens[1:pairs:2], strict=True))
    assert len(told) == len(set(told.values())) == task.pairs
    assert all(0 < k < half <= v for k, v in told.items())
    rest = tokens[pairs:]
    assert sorted(x for x in rest if x in told) == sorted(told) and not any(x in told for x in rest[1::2])
    assert task.random or set(rest) <= {0, *told}
    return [None] * pairs + [told.get(x) for x in rest]


def associative_recall(task, tokens):
    n, told = task.keys, {}
    if len(tokens) % 2 == 0:
        assert tokens[0] == 2 * n
    pairs = tokens[1 - len(tokens) % 2 : -1]
    for k, v in zip(pairs[::2], pairs[1::2], strict=True):
        assert k < n <= v < 2 * n and told.setdefault(k, v) == v
    return [None] * (len(tokens) - 1) + [told[tokens[-1]]]


def induction(task, tokens):
    trigger = task.vocab - 1
    assert tokens.count(trigger) == 2 and tokens[-1] == trigger
    return [None] * (len(tokens) - 1) + [tokens[tokens.index(trigger) + 1]]


def selective_copying(task, tokens):
    blank, noise = task.vocab - 1, task.vocab - 2
    asked = tokens.count(blank)
    data = [x for x in tokens[:-asked] if x != noise]
    assert asked == len(data) == task.items and tokens[-asked:] == [blank] * asked
    assert task.selective or tokens[: len(data)] == data
    return [None] * (len(tokens) - asked) + data


def passkey(task, tokens):
    text = " ".join(str(x) if x < 10 else WORDS[x - 10] for x in tokens)
    (number,) = re.findall(r"the pass key is ((?:\d )+)\. remember it \.", text)
    number = number.split()
    asked = "what is the pass key ? it is " + " ".join(number[:-1])
    assert text.endswith(asked.strip()) and len(number) == task.digits
    rest = re.sub(r"the pass key is [\d ]+ \. remember it \. ?", "", text.removesuffix(asked.strip())).strip()
    sentences = "the grass is green . the sky is blue . the sun is yellow . here we go . there and back again . "
    assert (sentences * (1 + len(rest) // len(sentences))).startswith(rest)
    return [None] * (len(tokens) - len(number)) + [int(x) for x in number]


def in_context(task, tokens):
    """The next token, where it is seen and no separator; the strings themselves are `accepted` below."""
    return [None if x == task.symbols else x for x in tokens[1:]]


def accepted(task, tokens, automaton):
    """The symbols that may follow each token, by walking the automaton; every string is one of its own."""
    edges = [
        dict(zip(s[:d], t[:d], strict=True)) for s, t, d in zip(*(leaf.tolist() for leaf in automaton), strict=True)
    ]
    state, out = 0, []
    for token in tokens:
        state = 0 if token == task.symbols else edges[state][token]
        out.append(set(edges[state]))
    strings = [list(g) for apart, g in groupby(tokens, lambda x: x == task.symbols) if not apart]
    assert max(map(len, strings)) <= task.longest
    return out


def expressions(modulus, numbers):
    """All token sequences of an expression of so many numbers."""
    parts = [range(modulus) if i % 2 == 0 else range(modulus, modulus + 3) for i in range(2 * numbers - 1)]
    return list(product(*parts))


ANSWERS = {
    "AssociativeRecall": associative_recall,
    "CycleNavigation": cycle,
    "Dyck": dyck,
    "EvenPairs": even_pairs,
    "FlipFlop": flip_flop,
    "InContextLanguages": in_context,
    "Induction": induction,
    "MQAR": mqar,
    "ModularArithmetic": arithmetic,
    "Parity": parity,
    "Passkey": passkey,
    "SelectiveCopying": selective_copying,
    "StarFree": star_free,
    "Sum": total,
    "WordProblem": word_problem,
}
