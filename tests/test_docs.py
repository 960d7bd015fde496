"""The README, the pages of docs/ and the notebooks name things that exist: commands, fields, functions, files."""

import ast
import importlib
import inspect
import itertools
import pathlib
import re
import shlex
from collections.abc import Iterator
from types import ModuleType

import pytest

import deeplab_jax
from deeplab_jax import files
from deeplab_jax.cli import main
from deeplab_jax.cli.config_flags import parse_config
from deeplab_jax.config import FIELDS, LOSS_TERMS, base_config, config_folders, find_config
from deeplab_jax.pretrained.presets import load_table

ROOT = pathlib.Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = sorted([README, ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "README.md", *ROOT.glob("docs/**/*.md")])

NOTEBOOKS = sorted(ROOT.glob("notebooks/*.py"))

# The modules that users import. The API reference has every public name of them.
MODULES = (
    "analysis.aot", "analysis.aot_compile", "analysis.aot_search", "analysis.collectives", "analysis.latency",
    "analysis.summary", "analysis.tpu_specs", "config", "data", "data.annotation_export", "data.annotation_formats",
    "data.annotation_import", "data.check", "data.download", "data.prepare",
    "data.prepared", "errors", "evaluation.boundary", "evaluation.calibration", "evaluation.details",
    "evaluation.evaluator", "evaluation.metrics", "evaluation.report", "evaluation.report_files", "export", "inference",
    "inference.files",
    "inference.multi_scale", "inference.sliding_window", "inference.streaming_resize", "inference.video", "labels",
    "losses", "models", "models.aspp", "models.decoder", "ops", "papers", "parallel.mesh",
    "parallel.processes", "parallel.sharding", "pretrained", "training.distillation", "training.initialization",
    "training.loop", "training.optimizer", "training.state", "training.step", "visualization", "workdir.checkpoint",
    "workdir.layout", "workdir.runs",
)  # fmt: skip

# `data.py`, `data.yaml` and `model.safetensors` are files; `data.workers` is a field.
FILE_ENDINGS = ("py", "md", "json", "jsonl", "txt", "png", "jpg", "toml", "yaml", "safetensors")

# The commands that need a config. The others get it from a workdir or a preset.
NEED_CONFIG = ("train", "summary", "aot")


def name_of(page: pathlib.Path) -> str:
    return page.relative_to(ROOT).as_posix()


# ---- The API ----


def public_names(module: ModuleType) -> set[str]:
    """Returns `__all__`, or else the names without an underscore that the module defines, except its logger."""
    if hasattr(module, "__all__"):
        return set(module.__all__)
    names = set()
    for node in ast.parse(inspect.getsource(module)).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            targets = itertools.chain.from_iterable(
                target.elts if isinstance(target, ast.Tuple) else [target] for target in node.targets
            )
            names |= {target.id for target in targets}
    return {name for name in names if not name.startswith("_")} - {"logger"}


def api_names() -> set[str]:
    """Returns every name that the API pages document."""
    text = "\n".join(page.read_text() for page in ROOT.glob("docs/api/*.md"))
    return set(re.findall(r"^\.\. (?:auto(?:function|class|exception|data)|py:data):: deeplab_jax\.(\S+)$", text, re.M))


@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_is_in_the_api(module):
    names = public_names(importlib.import_module(f"deeplab_jax.{module}"))
    assert names
    assert {f"{module}.{name}" for name in names} <= api_names()


def test_the_api_begins_with_the_names_of_the_package():
    named = re.findall(r"^\| \[`deeplab_jax\.(\w+)`\]", (ROOT / "docs/api/index.md").read_text(), re.M)
    assert sorted(named) == sorted(deeplab_jax.__all__)


# ---- Config fields, configs, presets ----


@pytest.fixture(scope="module")
def config_fields():
    spec = importlib.util.spec_from_file_location("config_fields", ROOT / "docs/_extensions/config_fields.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def flattened(values: dict, parent: str = "") -> dict:
    fields = {}
    for key, value in values.items():
        fields |= flattened(value, f"{parent}{key}.") if isinstance(value, dict) else {parent + key: value}
    return fields


def test_every_config_field_is_listed_with_its_default_and_a_meaning(config_fields):
    fields = config_fields.read_fields()
    assert {field.path: field.default for field in fields} == flattened(base_config().to_dict())
    assert [field.path for field in fields if not field.meaning] == []
    by_path = {field.path: field for field in fields}
    assert by_path["train.compute_dtype"].meaning.endswith(": `float32`, `bfloat16`")
    assert by_path["eval.protocol"].meaning.count("\n") == 5  # each legal value on a line of its own
    assert by_path["distributed.heartbeat_seconds"].type == "int"
    assert by_path["loss.teacher"].type == "str"  # a placeholder


def test_the_page_of_configs_has_every_group():
    groups = re.findall(r"^```\{config-fields\} (\w+)$", (ROOT / "docs/configs.md").read_text(), re.M)
    assert groups == list(dict.fromkeys(groups))
    assert set(groups) | {"stages"} == set(base_config())  # which have a page of their own


def test_the_readme_names_every_config():
    (folder,) = [folder for folder in config_folders() if folder.parent == ROOT]
    for path in folder.glob("*.py"):
        assert f"`{path.stem}`" in README.read_text()


def test_presets_in_the_readme_have_their_published_scores():
    rows = dict(re.findall(r"^\| `([\w-]+)` \| (mIoU .*) \| [^|]+ \|$", README.read_text(), re.M))
    presets = load_table()
    assert {name for name, preset in presets.items() if preset.package == "deeplab_jax"} <= set(rows)
    for name, score in rows.items():
        assert score == presets[name].score


def test_times_in_the_readme_are_those_of_the_benchmarks():
    header, _, *rows = re.search(r"^\| work \| peer .*?(?=\n\n)", README.read_text(), re.M | re.S)[0].splitlines()
    assert header == "| work | peer | deeplab_jax | peer's | ratio |"
    assert len(rows) >= 5
    measured = (ROOT / "benchmarks/RESULTS.md").read_text().splitlines()
    for row in rows:
        _, peer, ours, theirs, ratio = (cell.strip() for cell in row.strip("|").split("|"))
        assert [
            line
            for line in measured
            if f"| {peer} | {ours} (" in line and f"| {theirs} (" in line and f"| **{ratio}** (" in line
        ], row


def test_the_page_of_losses_lists_every_term_with_its_defaults():
    rows = re.findall(r"^\| `([a-z_]+)(?:\((.*?)\))?` \|", (ROOT / "docs/losses.md").read_text(), re.M)
    defaults = {
        name: ", ".join(f"{option}={field.default}" for option, field in options.items())
        for name, options in LOSS_TERMS.items()
    }
    rules = FIELDS["loss"]["class_weight_rule"].choices
    assert dict(rows) == defaults | {rule: "" for rule in rules if rule != "given"}


def test_fields_that_pages_name_exist():
    config, fields = base_config(), flattened(base_config().to_dict())
    found = 0
    for page in PAGES:
        for group, rest in re.findall(r"`(?:config\.)?(\w+)\.([a-z_.]+)(?:=[^`]*)?`", prose(page)):
            if group in config and not rest.endswith(FILE_ENDINGS):
                found += 1
                path = f"{group}.{rest}"
                assert path in fields or any(field.startswith(f"{path}.") for field in fields), (
                    f"{name_of(page)}: {path}"
                )
    assert found > 50


# ---- Commands ----


def prose(page: pathlib.Path) -> str:
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S)


def blocks(page: pathlib.Path, *languages: str) -> list[str]:
    return [
        text for lang, text in re.findall(r"^```(\S*)\n(.*?)^```$", page.read_text(), re.M | re.S) if lang in languages
    ]


def commands(page: pathlib.Path) -> Iterator[list[str]]:
    """Yields the arguments of every `deeplab-jax` on a page: in shell blocks, in backticks, in cells that run it."""
    shell = [text for block in blocks(page, "bash", "") for text in block.replace("\\\n", " ").splitlines()]
    shell += re.findall(r'^run\("(.*)"\)$', page.read_text(), re.M)
    for line in [*shell, *re.findall(r"`([^`\n]*deeplab-jax [^`]*)`", prose(page).replace("\n", " "))]:
        lexer = shlex.shlex(line, posix=True, punctuation_chars="&|;")
        lexer.whitespace_split = True
        try:
            words = list(lexer)
        except ValueError:  # a lone apostrophe: the block is not shell
            continue
        for part in words:  # the command that a quoted `--command="..."` starts
            if part.startswith("--command="):
                words += ["&&", *shlex.split(part.removeprefix("--command="))]
        for starts, run in itertools.groupby(words, key=lambda word: word not in ("&&", "|", ";", "||", "&")):
            run = list(run)
            names = [i for i, word in enumerate(run) if pathlib.PurePath(word).name == "deeplab-jax"]
            if starts and names:
                yield run[names[0] + 1 :]


def shown_commands() -> list:
    shown = {}
    for page in [*PAGES, *NOTEBOOKS]:
        for arguments in commands(page):
            shown.setdefault(" ".join(arguments), pytest.param(arguments, id=f"{name_of(page)}: {' '.join(arguments)}"))
    return list(shown.values())


@pytest.fixture
def parse(monkeypatch, tmp_path, capsys):
    """Parses arguments and their config as the command does, without running it. Returns (exit code, output)."""
    ran = []

    def parse_only(command, args):
        if command.takes_config:
            base = None if command.name in NEED_CONFIG else base_config()
            ran.append(parse_config(args.config_arguments, base=base))
        else:
            ran.append(None)

    monkeypatch.setattr(main, "run_command", parse_only)
    monkeypatch.setattr(files, "check_installed", lambda address: None)  # the packages for buckets may be missing
    (own_config,) = [text for text in blocks(ROOT / "docs/configs.md", "python") if "def get_config" in text]
    (tmp_path / "my_config.py").write_text(own_config)
    monkeypatch.chdir(tmp_path)

    def run(arguments: list[str]) -> tuple[int, str]:
        before = len(ran)
        with pytest.raises(SystemExit) as done:
            main.main(arguments)
        assert done.value.code != 0 or len(ran) > before or "--help" in arguments
        return done.value.code, "".join(capsys.readouterr())

    return run


@pytest.mark.parametrize("arguments", shown_commands())
def test_commands_that_pages_show_parse(parse, arguments):
    flags = [word.partition("=")[0] for word in arguments if word.startswith("--")]
    if "..." in arguments or arguments[1:] in (
        [],
        ["prepare"],
    ):  # only mentioned: the name and the flags must exist
        code, said = parse([*arguments[: 2 if arguments[0] in ("data", "papers") else 1], "--help"])
        assert all(re.search(rf"{flag}\b", said) for flag in flags), said
    else:
        code, said = parse(arguments)
    assert code == 0, said


def test_a_flag_that_is_not_there_would_be_found(parse):
    assert parse(["train", "--config", "quickstart", "--workdir", "runs", "--config.train.step=3"])[0] == 2
    assert parse(["data", "show", "synthetic", "--outputs", "x.png"])[0] == 2
    assert parse(["train", "--config", "quickstart:stepz=3", "--workdir", "runs"])[0] == 1
    assert parse(["train", "--config", "quickstart:steps=3", "--workdir", "runs"])[0] == 0


def test_enough_commands_are_found():
    shown = {param.values[0][0] for param in shown_commands()}
    assert {"train", "evaluate", "predict", "summary", "data", "convert", "presets", "aot"} <= shown
    assert len(shown_commands()) > 40


def test_presets_and_configs_that_commands_name_exist():
    for param in shown_commands():
        (arguments,) = param.values
        text = " ".join(arguments)
        for name in re.findall(r"(?:--preset[ =]|train\.init_from=)(\w+)(?![\w/:])", text):
            assert name in {*load_table(), "NAME", "runs", "networks"}, text
        for name in re.findall(r"--config[ =](\w+)(?![\w.])", text):
            assert find_config(name)


# ---- Python, links ----


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_python_on_pages_imports_what_there_is(page):
    for block in blocks(page, "python"):
        tree = ast.parse(block)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("deeplab_jax"):
                module = importlib.import_module(node.module)
                for alias in node.names:
                    assert hasattr(module, alias.name) or importlib.import_module(f"{node.module}.{alias.name}")
            elif (
                isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "deeplab_jax"
            ):
                assert node.attr in deeplab_jax.__all__


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_to_files_lead_somewhere(page):
    for target in re.findall(r"\]\((?![a-z]+:|#)([^)#\s]+)", page.read_text()):
        assert (page.parent / target).exists(), target
