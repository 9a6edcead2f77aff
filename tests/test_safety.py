"""What comes from outside runs no code, is read strictly, and is refused in one line: files, configs, knobs."""

import ast
import json
import shutil
import string
from pathlib import Path

import jax
import numpy as np

import jaxlm
from jaxlm.blocks import Block, Stack
from jaxlm.bridges.huggingface import load as load_pretrained
from jaxlm.cli import guarded
from jaxlm.errors import ConfigError
from jaxlm.mixers import GRU
from jaxlm.models import LM
from jaxlm.module import init

ROOT = Path(__file__).parents[1]
TINY = str(ROOT / "tests" / "tiny.py")
# Anything where a number, a name or a table is expected.
JUNK = (
    None,
    True,
    -1,
    0,
    10**30,
    0.5,
    "",
    "os.system",
    "__import__('os')",
    "../../etc",
    [],
    {},
    [[[]]],
    {"class": "eval"},
)


def test_no_part_of_the_library_unpickles_evaluates_or_unpacks():
    """eval, exec, pickle and archives do not occur; the one place that runs a file is the user's own config."""
    banned = {"eval", "exec", "compile", "__import__"}
    modules = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib", "tarfile", "zipfile", "yaml"}
    for file in sorted((ROOT / "jaxlm").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in banned, f"{file}:{node.lineno}: {node.func.id}"
            if (
                isinstance(node, ast.Call)
                and getattr(node.func, "attr", "") == "load"
                and "np" in ast.unparse(node.func)
            ):
                assert "allow_pickle=False" in ast.unparse(node), f"{file}:{node.lineno}: np.load"
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not modules & {n.split(".")[0] for n in names}, f"{file}:{node.lineno}"
            if getattr(node, "attr", "") == "exec_module":
                assert file.name == "config.py", file


def spoil(value, rng):
    """A JSON value with one place changed: dropped, renamed, replaced by junk, or nested too deep."""
    if isinstance(value, dict | list) and value and rng.random() < 0.8:
        keys = list(value) if isinstance(value, dict) else range(len(value))
        key = keys[rng.integers(len(keys))]
        how = rng.integers(4)
        if how == 0 and isinstance(value, dict):
            return {k: v for k, v in value.items() if k != key}
        if how == 1 and isinstance(value, dict):
            return {f"{k}_" if k == key else k: v for k, v in value.items()}
        changed = spoil(value[key], rng)
        return {**value, key: changed} if isinstance(value, dict) else [*value[:key], changed, *value[key + 1 :]]
    return JUNK[rng.integers(len(JUNK))]


def spoil_text(text: str, rng) -> bytes:
    """The text of a JSON file: one value changed, cut short, bytes flipped, or a number that JSON has not."""
    how = rng.integers(4)
    if how == 0:
        return text[: rng.integers(len(text))].encode()
    if how == 1:
        raw = bytearray(text.encode())
        raw[rng.integers(len(raw))] ^= 1 << rng.integers(8)
        return bytes(raw)
    if how == 2:
        return json.dumps(spoil(json.loads(text), rng)).replace("0.5", "NaN").encode()
    return json.dumps(spoil(json.loads(text), rng)).encode()


def spoil_tensors(raw: bytes, rng) -> bytes:
    """A safetensors file: its header's length, offsets, overlaps, dtypes, shapes or total made wrong, or bytes lost."""
    size = int.from_bytes(raw[:8], "little")
    header, values = json.loads(raw[8 : 8 + size]), raw[8 + size :]
    names = [n for n in header if n != "__metadata__"]
    one, other = header[names[rng.integers(len(names))]], header[names[rng.integers(len(names))]]
    how = rng.integers(9)
    if how == 0:
        return int(rng.integers(2**62)).to_bytes(8, "little") + raw[8:]
    if how == 1:
        return raw[: rng.integers(len(raw))]
    if how == 2:
        one["data_offsets"] = [int(x) for x in rng.integers(-(2**40), 2**40, 2)]
    if how == 3:
        one["data_offsets"] = other["data_offsets"] if one is not other else [0, 0]
    if how == 4:
        one["dtype"] = ("F7", "O", "F64", None)[rng.integers(4)]
    if how == 5:
        one["shape"] = [[2**40, 2**40], [-1], "all", [1]][rng.integers(4)]
    if how == 6:
        values = values + b"\0" * 8 if rng.random() < 0.5 else values[:-8]
    if how == 7:
        header["../../outside"] = one
    text = json.dumps(spoil(header, rng) if how == 8 else header).encode()
    return len(text).to_bytes(8, "little") + text + values


def one_line(error: Exception):
    assert isinstance(error, ConfigError) and "\n" not in str(error) and len(str(error)) < 1000, repr(error)


def refusals(read, folder: Path, whole: Path, spoilers, rng, times: int) -> int:
    """How often a folder of which one file is spoilt is refused; whatever else happens fails."""
    count = 0
    for _ in range(times):
        name, change = spoilers[rng.integers(len(spoilers))]
        good = (whole / name).read_bytes()
        (folder / name).write_bytes(change(good, rng))
        try:
            read(folder)
        except Exception as error:
            one_line(error)
            assert str(folder) in str(error)
            count += 1
        (folder / name).write_bytes(good)
    return count


def test_a_hundred_spoilt_models_are_refused(tmp_path):
    model = LM(16, 8, Stack(Block(GRU(8)), 1))
    jaxlm.save(tmp_path / "good", model, init(model, jax.random.key(0)))
    shutil.copytree(tmp_path / "good", tmp_path / "bad")
    spoilers = (
        ("model.json", lambda raw, rng: spoil_text(raw.decode(), rng)),
        ("params.safetensors", spoil_tensors),
    )
    found = refusals(jaxlm.load, tmp_path / "bad", tmp_path / "good", spoilers, np.random.default_rng(0), 100)
    assert found >= 98  # a changed place may hold what it held


def test_a_hundred_spoilt_pretrained_folders_are_refused_or_harmless(tmp_path):
    """Without digests a change may leave a readable model (another end of text, say); nothing else may happen."""
    whole = ROOT / "tests" / "vectors" / "llama"
    shutil.copytree(whole, tmp_path / "bad")
    spoilers = (
        ("config.json", lambda raw, rng: spoil_text(raw.decode(), rng)),
        ("model.safetensors", spoil_tensors),
    )
    assert refusals(load_pretrained, tmp_path / "bad", whole, spoilers, np.random.default_rng(1), 100) >= 70


BROKEN = (
    "def experiment(",
    "import no_such_package",
    "raise ValueError('two\\nlines')",
    "experiment = 3",
    "def experiment(): ...",
    "def experiment(steps: int = 1, seed: int = 0, lr: float = 1.0, batch: int = 1): ...",
    "def experiment(steps: int = 1, seed: int = 0, lr: float = 1.0, batch: int = 1, mesh: str = ''): return {}",
    "def experiment(steps: int = 1, seed: int = 0, lr: float = 1.0, batch: int = 1, mesh: str = ''): return nothing",
    "def experiment(steps: int = 1, seed: int = 0, lr: float = 1.0, batch: int = 1, mesh: str = ''): 1 / 0",
    "def experiment(steps: Unknown = 1, seed: int = 0, lr: float = 1.0, batch: int = 1, mesh: str = ''): ...",
    "def experiment(steps, seed, lr, batch, mesh): ...",
    "\0",
    "\udcff",
)


def test_fifty_broken_configs_are_one_line_each(tmp_path, capfd):
    rng, good = np.random.default_rng(2), Path(TINY).read_text()
    for i in range(50):
        text = BROKEN[i] if i < len(BROKEN) else good[: rng.integers(40, len(good) // 2)] + "\n)"
        path = tmp_path / f"config{i}.py"
        path.write_bytes(text.encode(errors="surrogateescape"))
        assert guarded(["train", str(path), "--run-dir", str(tmp_path / "run")], debug=False) in (1, 2), text
        said = capfd.readouterr().err
        assert len(said.splitlines()) == 1 and said.startswith("error: "), said
    assert not (tmp_path / "run").exists()


def test_fifty_wrong_knobs_are_explained(tmp_path, capfd):
    """By our one line, or by tyro's box; never by a traceback, and nothing is left behind."""
    rng = np.random.default_rng(3)
    flags = ("--steps", "--lr", "--batch", "--mesh", "--width", "--mixer", "--seed", "--no-such", "--length", "-x")
    values = (
        "nan!",
        "-7",
        "0",
        "",
        "1e999x",
        "data=0",
        "data=2,data=2",
        "tensor=-3",
        "[]",
        "None",
        "\N{SNOWMAN}",
        "--",
    )
    for _ in range(50):
        word = "".join(rng.choice(list(string.ascii_letters), 3))
        args = [flags[rng.integers(len(flags))], values[rng.integers(len(values))], f"--{word}", "1"]
        try:
            code = guarded(["train", TINY, "--run-dir", str(tmp_path / "run"), *args], debug=False)
        except SystemExit as stop:
            code = stop.code
        said = capfd.readouterr().err
        assert code in (1, 2) and said and "Traceback" not in said, (args, said)
    assert not (tmp_path / "run").exists()
