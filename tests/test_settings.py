"""Settings go into files and come back as they were; what a file gets wrong is told whole, by file and line."""

import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, is_dataclass, replace
from math import inf
from pathlib import Path
from typing import Annotated, Any, Literal

import bench
import omni
import pretrain
import pytest
import sft
import tyro
from fields import build, flat_keys, members_of, paths_of, to_plain
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from limits import flat_values
from ranks import Run
from settings import as_flags, ask, read_settings, tell_settings
from strict_yaml import kind_of, read_yaml, tell_yaml
from training import SMALL, train
from versions import CHANGES, VERSION

from omni_mesh import MeshConfig
from omni_parallel import AdamWConfig

APPS = {"pretrain": pretrain, "sft": sft, "bench": bench, "omni": omni}
FLAT = {name: paths_of(app.Config) for name, app in APPS.items()}


def write(folder: Path, text: str, name: str = "run.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def complaint(path: Path, kind: type = pretrain.Config) -> list[str]:
    with pytest.raises(ValueError) as told:
        read_settings(kind, [path])
    return str(told.value).splitlines()[1:]


def others(value: Any, hint: Any) -> list[Any]:
    """Values of a type, as YAML has them, that are not `value`."""
    members = getattr(hint, "__args__", ()) if type(None) in getattr(hint, "__args__", ()) else (hint,)
    found: list[Any] = []
    for one in members:
        if one is type(None):
            found.append(None)
        elif getattr(one, "__origin__", None) is Literal:
            found += one.__args__
        elif getattr(one, "__origin__", None) is tuple:
            inner = one.__args__
            many = [others(None, inner[0])] if inner[-1] is Ellipsis else [others(None, each) for each in inner]
            found += [[], many[0]] if inner[-1] is Ellipsis else [[each[-1] for each in many]]
        else:
            found += EXAMPLES[one]
    return [one for one in found if one != value]


EXAMPLES = {
    bool: [True, False],
    int: [0, -1, 7, 10**12],
    float: [0.0, 1e-5, -3.5e300, inf, 2],
    str: ["a", "", "no", "1e-5", "3", "null", "~", "a: b #c", "'", '"', "two\nlines", " x ", "über", "- a", "***x"[3:]],
    Path: ["runs/x", "3", "no"],
}


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The mapping that has these values below these paths."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *above, name = path.split(".")
        inside = tree
        for word in above:
            inside = inside.setdefault(word, {})
        inside[name] = value
    return tree


@pytest.mark.parametrize("app", APPS)
def test_every_field_goes_into_a_file_and_comes_back(app: str, tmp_path: Path) -> None:
    kind, flat = APPS[app].Config, {path: hint for path, hint in FLAT[app].items() if not is_dataclass(hint)}
    values = {path: others(..., hint) for path, hint in flat.items()}
    for i in range(max(map(len, values.values()))):
        asked = {path: some[i % len(some)] for path, some in values.items()}
        config = read_settings(kind, [write(tmp_path, tell_yaml(nested(asked)))])
        assert read_settings(kind, [write(tmp_path, tell_settings(config))]) == config
        if i < 2:
            assert ask(kind, None, args=["--config", str(tmp_path / "run.yaml")]) == config
        plain = flat_values(to_plain(config))
        assert {path: value for path, value in plain.items() if value != asked[path]} == {}
    assert flat.keys() == plain.keys() and len(plain) > 60


@pytest.mark.parametrize("app", APPS)
@pytest.mark.parametrize("typed", [lambda name: name + name[-1], lambda name: name[:-1] + "x", str.upper])
def test_every_name_with_a_typo_is_told_with_its_line_and_the_name_that_is_meant(
    app: str, typed: Callable[[str], str], tmp_path: Path
) -> None:
    typos = {path: ".".join([*path.split(".")[:-1], typed(path.split(".")[-1])]) for path in FLAT[app]}
    typos = {path: typo for typo, path in {typo: path for path, typo in typos.items()}.items()}
    # One that is as near to another name is none of this name.
    typos = {path: typo for path, typo in typos.items() if {typo, typo[:-1]} & FLAT[app].keys() <= {path} - {typo}}
    text = tell_yaml(nested(dict.fromkeys(typos.values(), 1)))
    told = complaint(write(tmp_path, text), APPS[app].Config)
    assert len(told) == len(typos) > 60
    for path, typo in typos.items():
        (line,) = [line for line in told if f": there is no key {typo}. " in line]
        at = int(line.removeprefix(f"  - {tmp_path}/run.yaml:").split(":")[0])
        assert text.splitlines()[at - 1].strip().startswith(f"{typo.split('.')[-1]}: 1")
        assert path in line.split("Did you mean ")[1].rstrip("?").split(" or "), line


@pytest.mark.parametrize("value", [[[1]], {"a": 1}, "an odd word"], ids=["list", "mapping", "word"])
def test_every_value_of_another_type_is_told_with_its_line_and_the_type(value: Any, tmp_path: Path) -> None:
    wrong = {
        path: value
        for path, hint in FLAT["sft"].items()
        if not is_dataclass(hint) and not (isinstance(value, str) and {str, Path} & {*members_of(hint)})
    }
    text = tell_yaml(nested(wrong))
    told = complaint(write(tmp_path, text), sft.Config)
    assert len(told) == len(wrong) > 40
    for path in wrong:
        (line,) = [line for line in told if re.search(rf":\d+: {re.escape(path)}(\[0\])? is ", line)]
        assert " has to be " in line
        assert text.splitlines()[int(line.split(":")[1]) - 1].strip().startswith(path.split(".")[-1])


def test_everything_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """
optim:
  lrr: 1e-5
  lr: fast
  eps: 1e-5
  eps: 1e-6
steps: 1.5
seq-len: 3
mesh: {shard: 2}
lr: 3
optim.betas: [0, 1]
data: x
experts: egar
model: 3
keep: null
workers: null
base: none.yaml
""",
    )
    at = f"  - {path}"
    assert complaint(path) == [
        f"{at}:6: eps stands in line 5 already: leave one of them out.",
        f"{at}:17: there is no file {tmp_path}/none.yaml: bases are named relative to the file.",
        f"{at}:3: there is no key optim.lrr. Did you mean optim.lr?",
        f"{at}:4: optim.lr is 'fast', and has to be a number.",
        f"{at}:7: steps is 1.5, and has to be a whole number.",
        f"{at}:8: there is no key seq-len. Did you mean seq_len?",
        f"{at}:9: there is no key mesh. Its keys stand by themselves, as its flags do: pp, replicate, shard, cp, sp, "
        "tp, ep.",
        f"{at}:10: there is no key lr. Did you mean optim.lr?",
        f"{at}:11: there is no key optim.betas. Write betas in the mapping of optim.",
        f"{at}:12: data is 'x', and has to be a list, each text. Write [x].",
        f"{at}:13: experts is 'egar', and has to be auto or grouped or eager. Did you mean eager?",
        f"{at}:14: model is 3, and has to be text. Text that looks like this stands in quotes: '3'.",
        f"{at}:15: keep is null, and has to be a whole number. Leave the key out for what it is by itself.",
    ]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("- 1", ":1: settings are a mapping, lines of `key: value`, and here is none."),
        ("steps: [1", ":1:10: no YAML: "),
        ("a:\tb", ":1:3: no YAML: "),
        ("steps: 3\n---\nsteps: 4", ":2:1: no YAML: expected a single document"),
        ("steps: !!int 3", ":1: the tag tag:yaml.org,2002:int has no meaning here: leave it out."),
        ("field: !!python/object/apply:os.getcwd []", ":1: the tag tag:yaml.org,2002:python/object/apply:os.getcwd "),
        ("? [a]\n: 3", ":1: a key is a word, and here is a list or a mapping."),
        ("optim: &o\n  lr: *o", ":1: an alias stands inside of what it names: write it out."),
        ("<<: {steps: 3}", ":1: there is no key <<. "),
        ("weights: https://x.org/m?token=***", ":1: weights has *** where a secret was left out: write it in"),
        ("shuffle: yes", ":1: shuffle is 'yes', and has to be true or false."),
        ("optim: {betas: [0.9]}", ":1: optim.betas is a list of 1, and has to be a list of 2, each a number."),
        ("optim: {betas: [0.9, x]}", ":1: optim.betas[1] is 'x', and has to be a number."),
        ("optim:", ":1: optim is null, and has to be a mapping with keys of lr, betas,"),
        ("version: 2", ":1: version 2 is not known here, where 0 to 1 are: read it with the app that wrote it"),
        ("version: new", ":1: version has to be a whole number: 1 is that of this app."),
        ("base: 3", ":1: base has to be a file of settings, or a list of such."),
        ("\nbase: run.yaml", ":2: run.yaml is its own base: take one of them out."),
    ],
)
def test_what_is_no_file_of_settings_is_told_by_line(text: str, told: str, tmp_path: Path) -> None:
    path = write(tmp_path, text)
    assert f"{path}{told}" in "\n".join(complaint(path))


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    assert complaint(tmp_path / "none.yaml") == [f"  - {tmp_path}/none.yaml cannot be read: No such file or directory."]
    (tmp_path / "odd.yaml").write_bytes(b"model: \xff")
    assert complaint(tmp_path / "odd.yaml") == [f"  - {tmp_path}/odd.yaml is no text in UTF-8: byte 7 is 0xff."]
    assert "no YAML: character 7 is not allowed" in complaint(write(tmp_path, "model: \x01"))[0]


def test_numbers_are_floats_with_an_exponent_alone(tmp_path: Path) -> None:
    for word in ("1e-5", "1E-5", "1.e-5", "0.00001", "+1e-5", "10e-6"):
        assert read_settings(pretrain.Config, [write(tmp_path, f"optim: {{lr: {word}}}")]).optim.lr == 1e-5
    assert "has to be a whole number" in complaint(write(tmp_path, "steps: 1e3"))[0]
    assert "has to be a number" in complaint(write(tmp_path, "optim: {lr: '1e-5'}"))[0]


def test_later_files_win_key_by_key_and_flags_over_all(tmp_path: Path) -> None:
    write(tmp_path, "optim: {lr: 1e-5, betas: [0.8, 0.9]}\nsteps: 5\ndata: [a, b]\nshard: 2\n", "root.yaml")
    (tmp_path / "sub").mkdir()
    base = write(tmp_path / "sub", "base: ../root.yaml\noptim: {eps: 1e-6}\ndata: [c]\n", "base.yaml")
    over = write(tmp_path, "optim: {lr: 2e-5}\nseed: 3\n", "over.yaml")
    config = ask(pretrain.Config, None, args=["--config", str(base), str(over), "--optim.lr", "5e-7", "--shard", "4"])
    assert config == pretrain.Config(
        optim=AdamWConfig(lr=5e-7, betas=(0.8, 0.9), eps=1e-6), data=("c",), steps=5, seed=3, mesh=MeshConfig(shard=4)
    )
    assert read_settings(pretrain.Config, [over, base]).optim.lr == 1e-5
    both = write(tmp_path, "base: [root.yaml, over.yaml]\n", "both.yaml")
    assert read_settings(pretrain.Config, [both]).optim.lr == 2e-5


def test_a_file_of_a_run_is_one_of_its_measurement_and_finetuning_keeps_its_own_defaults(tmp_path: Path) -> None:
    path = write(tmp_path, "model: tiny-moe\nep: 2\noptim: {eps: 1e-6}\n")
    kinds = (pretrain.Config, sft.Config, bench.Config)
    ours, tuned, measured = (read_settings(kind, [path]) for kind in kinds)
    assert measured.run == replace(bench.Config().run, model="tiny-moe", mesh=MeshConfig(ep=2), optim=ours.optim)
    assert (tuned.run.optim.lr, tuned.run.optim.eps, tuned.run.out) == (2e-5, 1e-6, Path("runs/sft"))


def test_older_versions_are_read_as_this_one_or_refused_by_name(tmp_path: Path) -> None:
    config = read_settings(pretrain.Config, [write(tmp_path, "version: 0\ndata: a.jsonl\nexperts: transformers\n")])
    assert config.data == ("a.jsonl",) and config.experts == "eager"
    (told,) = complaint(write(tmp_path, "version: 0\n\nunit_blocks: 3\n"))
    assert ":3: unit_blocks of version 0 is no more: how blocks are gathered is decided by their size" in told
    assert [*CHANGES] == [*range(VERSION)]
    for app in FLAT.values():
        assert not {"version", "base", "config", "print_config"} & app.keys()


@dataclass(frozen=True)
class Square:
    side: float
    name: str = ""


@dataclass(frozen=True)
class Circle:
    radius: float = 1.0


@dataclass(frozen=True)
class Odd:
    """Types that no app has yet."""

    inside: Annotated[Circle, tyro.conf.arg(name="")] = Circle()
    shape: Square | Circle = Circle()
    maybe: Square | None = None
    many: tuple[Circle, ...] = ()
    pair: tuple[int, str] = (1, "a")
    either: int | float | str | None = None
    words: dict[str, int] | None = None
    level: Literal[1, 2, "three"] = 1
    paths: list[Path] | None = None


VALUES = st.builds(
    Odd,
    inside=(circles := st.builds(Circle, st.floats(allow_nan=False))),
    shape=circles | (squares := st.builds(Square, st.floats(allow_nan=False), st.text(st.characters(codec="utf-8")))),
    maybe=st.none() | squares,
    many=st.lists(circles, max_size=3).map(tuple),
    pair=st.tuples(st.integers(), st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]))),
    either=st.none() | st.integers() | st.floats(allow_nan=False) | st.text("01e-.no~ #:'\"\n+xyes"),
    words=st.none() | st.dictionaries(st.text("ab1~ -:"), st.integers()),
    level=st.sampled_from([1, 2, "three"]),
    paths=st.none() | st.lists(st.sampled_from(["a/b", "3", "no", "x y"]).map(Path), max_size=3),
)


@given(VALUES)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
def test_whatever_a_dataclass_holds_comes_back(tmp_path: Path, value: Odd) -> None:
    told = tell_yaml(to_plain(value))
    assert read_settings(Odd, [write(tmp_path, told.replace("***", "* *"))]) == value or "***" in told


def test_a_union_says_which_it_is(tmp_path: Path) -> None:
    write(tmp_path, "shape: {type: Square, side: 2}\n", "base.yaml")
    over = write(tmp_path, "base: base.yaml\nshape: {type: Square, name: a}\n", "over.yaml")
    assert read_settings(Odd, [over]).shape == Square(2.0, "a")
    other = write(tmp_path, "base: base.yaml\nshape: {type: Circle}\n", "other.yaml")
    assert read_settings(Odd, [other]).shape == Circle()
    assert (
        ":1: shape needs a key type, one of Square, Circle." in complaint(write(tmp_path, "shape: {side: 2}"), Odd)[0]
    )
    with pytest.raises(ValueError, match="Square needs side"):
        read_settings(Odd, [write(tmp_path, "maybe: {name: a}")])


@given(st.text(st.characters(codec="utf-8")))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_text_is_the_same_text_for_this_reader(tmp_path: Path, text: str) -> None:
    tree, problems = read_yaml(write(tmp_path, tell_yaml({"a": text, text: "a"})))
    assert not problems
    assert [(key.text, getattr(value, "text", None)) for key, value in tree.items] == [*{"a": text, text: "a"}.items()]
    assert all(getattr(value, "kind", None) == "str" for key, value in tree.items)
    assert kind_of(text) == "str" or f"'{text}'" in tell_yaml({"a": text}) or f'"{text}"' in tell_yaml({"a": text})


def test_settings_are_printed_alone_and_make_the_same_settings(tmp_path: Path) -> None:
    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, sft.__file__, *words]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    asked = [
        "--steps",
        "3",
        "--chat.options",
        "a=1",
        "--sp",
        "2",
        "--weights",
        "https://x.org/m?token=abcdef",
        "--print-config",
    ]
    first = run(*asked)
    assert (first.returncode, first.stderr) == (0, "")
    write(tmp_path, first.stdout.replace("***", "open"))
    again = run("--config", "run.yaml", "--print-config")
    assert (again.returncode, again.stdout, again.stderr) == (0, first.stdout, "")
    assert "steps: 3\n" in first.stdout and "token=***" in first.stdout and "abcdef" not in first.stdout
    wrong = run("--config", "run.yaml", "none.yaml", "--print-config")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr == "error: this run cannot start:\n  - none.yaml cannot be read: No such file or directory.\n"
    assert [path.name for path in tmp_path.iterdir()] == ["run.yaml"]


@pytest.mark.parametrize("app", APPS)
def test_what_files_say_is_said_by_flags_too(app: str, tmp_path: Path) -> None:
    kind, flat = APPS[app].Config, {path: hint for path, hint in FLAT[app].items() if not is_dataclass(hint)}
    changes = {path: others(..., hint)[-1] for path, hint in flat.items()}
    path = write(tmp_path, tell_yaml(nested({name: value for name, value in changes.items() if value != "x"})))
    words = as_flags(kind, ["--config", str(path), "--steps", "9"])
    assert "--config" not in words and words[-2:] == ["--steps", "9"]
    assert ask(kind, None, args=words) == ask(kind, None, args=["--config", str(path), "--steps", "9"])


def test_a_flag_of_files_is_near_to_its_typo_and_needs_one(capsys: pytest.CaptureFixture[str]) -> None:
    for args, words in ((["--confg", "a.yaml"], "--config"), (["--print-confg"], "--print-config")):
        with pytest.raises(SystemExit):
            ask(pretrain.Config, None, args=args)
        assert words in capsys.readouterr().err
    with pytest.raises(ValueError, match="--config needs a file"):
        ask(pretrain.Config, None, args=["--config", "--steps", "3"])


def test_a_run_leaves_the_settings_that_made_it(run: Run, tmp_path: Path) -> None:
    config = replace(SMALL, out=tmp_path / "run", steps=2, save_every=2)
    run(train, 1, config)
    assert read_settings(pretrain.Config, [config.out / "config.yaml"]) == config
    assert not [*config.out.glob("*.part")]


def test_the_page_on_settings_shows_a_file_of_settings(tmp_path: Path) -> None:
    page = (Path(__file__).parent.parent / "docs" / "settings.md").read_text()
    (shown,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    write(tmp_path, "seq_len: 8192\noptim: {eps: 1e-6}\n", "common.yaml")
    config = read_settings(pretrain.Config, [write(tmp_path, shown)])
    assert (config.seq_len, config.optim.lr, config.optim.eps, config.mix.weights) == (8192, 3e-4, 1e-6, ("0.8", "0.2"))
    for line in complaint(write(tmp_path, "optim:\n  lrr: 1\nsteps: 1.5\n")):
        assert line.replace(f"{tmp_path}/", "") in page


def test_what_is_built_from_nothing_are_the_defaults() -> None:
    for app in APPS.values():
        assert build(app.Config, {}) == app.Config()
        assert asdict(app.Config()) and flat_keys(app.Config)
