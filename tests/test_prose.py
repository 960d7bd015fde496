"""House style: phrases that readers stumble over stay out of pages, docstrings, comments, help texts and messages.

Each rule is a regular expression and what to write instead. Code is left alone: fenced blocks, names in backticks, and
strings of a single word.
"""

import ast
import dataclasses
import io
import pathlib
import re
import textwrap
import tokenize
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).parents[1]

PAGES = sorted(
    path
    for pattern in (
        "README.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        "docs/**/*.md",
        "benchmarks/*.md",
        "deeplab_jax/**/*.md",
    )
    for path in ROOT.glob(pattern)
)
MODULES = sorted(
    path
    for pattern in ("deeplab_jax/**/*.py", "configs/*.py", "notebooks/*.py", "benchmarks/**/*.py", "docs/**/*.py")
    for path in ROOT.glob(pattern)
)

_ARTICLE = r"(?:the|a|an|each|every|its|this|that|one|several|all)"
_COMPARATIVE = (
    r"(?:larger|smaller|longer|shorter|higher|lower|later|earlier|older|newer|bigger|better|faster|slower|wider|narrower"
    r"|deeper|closer|easier|harder|fewer|cheaper|finer|coarser|stronger|weaker|further|other|less|more|worse|different)"
)
_VERB = r"(?:takes?|needs?|is|was|has|had|sees|can|may|must|keeps|reads|holds|spends|runs|waits|begins|starts|ends)"

# (regular expression, what to write). A space in an expression also matches a line break.
ANYWHERE = (
    (r"\bpictures?\b", "image"),
    (r"\bvoid\b", "ignore label, ignored pixels, unlabeled"),
    (r"\banew\b", "again"),
    (r"\bso many\b", "say how many"),
    (r"\bas far as\b", "where, if"),
    (r"\bbesides\b", "also, in addition to"),
    (r"\blikewise\b", "also"),
    (r"(?:^|(?<=[,.;:] ))all the same\b|\ball the same,", "anyway"),
    (r"\bmend(?:s|ed|ing)?\b", "fix"),
    (r"\b(?:where|there|here)(?:of|in|upon)\b", "of it, in it"),
    (r"\bthe more so\b", "say why"),
    # "there is no", "is no longer" and "is no larger than" are good English.
    (rf"(?<!there )\b(?:is|are|was|were) no (?!{_COMPARATIVE}\b)\w", "is not a"),
    (r"\b(?:is|are|was|were|be) had\b", "comes from, is available"),
    (r"\bcannot be made\b", "cannot create"),
    (r"\bbehind (?:the|its?|each|every|this|that|their|those|these|which)\b(?! (?:proxy|firewall|scenes))", "after"),
    (r"\b(?:files?|folders?|checkpoints?|weights|archives?|workdir|data|images|masks) (?:lie|lies|lay)\b", "is, are"),
    (
        r"(?:\b(?:images?|frames?|examples?|steps|times|bytes|operations|FLOPs?|[KMGT]i?B|ms|s|seconds|minutes|rows|one)"
        r"|\d) an? (?:second|minute|hour|step|chip|device|process|host|image|epoch|line|batch|core|pixel|example)\b"
        rf"(?! {_VERB}\b)",
        "per second, per step, per line",
    ),
    (r", for (?:it|they|there) (?:is|are|was|were|has|have|can|do|does)\b", "because"),
    (r"(?:^|(?<=[.!?] ))What (?![^.!?]*\?)", "start with the thing: 'The training state.'"),
    (
        r"\b(?:colour\w*|grey\w*|neighbour\w*|behaviour\w*|favour\w*|honour\w*|centre[ds]?|metres?"
        r"|licence\w*|labell\w+|modell\w+|catalogue\w*|artefacts?|analys(?:e|ed|ing)|programmes?|whilst|amongst"
        r"|(?:normal|initial|serial|optim|general|summar|recogn|organ|util|quant|regular|parallel|factor|vector"
        r"|maxim|minim|synchron|visual|random|special|local|material|character|custom|token|penal|final|capital"
        r"|memor|emphas|stabil|standard|categor|binar|discret|linear|equal|real)"
        r"is(?:e|es|ed|er|ers|ing|ation|ations|able))\b",
        "American spelling",
    ),
)
HEADINGS = ((r"^What\b.*\?$", "name the thing"),)
DOCSTRINGS = ((rf"(?:^|(?<=[.:)] ))\w+: of {_ARTICLE}\b", "say what it is: 'seconds: time per step'"),)
# Help texts and the comments that document config fields.
FRAGMENTS = ((rf"^of {_ARTICLE}\b", "say what it is: 'network input size'"),)


@dataclasses.dataclass(frozen=True)
class Text:
    """A piece of prose: its characters with runs of white space as one space, and the line of each."""

    path: pathlib.Path
    characters: str
    lines: tuple[int, ...]
    rules: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, path: pathlib.Path, text: str, line: int, *rules: tuple[tuple[str, str], ...]) -> "Text":
        characters, lines = [], []
        for character in _without_code(text):
            if not character.isspace():
                characters.append(character)
                lines.append(line)
            elif characters and characters[-1] != " ":
                characters.append(" ")
                lines.append(line)
            line += character == "\n"
        return cls(path, "".join(characters), tuple(lines), tuple(rule for group in rules for rule in group))

    def problems(self) -> Iterator[str]:
        for pattern, instead in self.rules:
            for match in re.finditer(pattern, self.characters, re.IGNORECASE):
                around = self.characters[max(match.start() - 25, 0) : match.end() + 25]
                place = f"{self.path.relative_to(ROOT).as_posix()}:{self.lines[match.start()]}"
                yield f"{place}: {match[0]!r} (write: {instead}) in ...{around}..."


def _without_code(text: str) -> str:
    """Text whose names in backticks, addresses and link targets are blank, with its line breaks."""
    for pattern in (r"``[^`]+``", r"`[^`]+`", r"\w+://[^\s)]+", r"(?<=\])\([^)\s]+\)"):
        text = re.sub(pattern, lambda match: re.sub(r"[^\n]", "_", match[0]), text)
    return text


def texts_of_page(path: pathlib.Path) -> Iterator[Text]:
    """Headings, and the paragraphs, list items and table rows between them."""
    text = re.sub(r"^( *)```.*?^\1```", lambda match: "\n" * match[0].count("\n"), path.read_text(), flags=re.M | re.S)
    text = re.sub(r"<!--.*?-->", lambda match: "\n" * match[0].count("\n"), text, flags=re.S)
    for match in re.finditer(r"(?:^(?!\s*$).*\n?)+", text, re.M):
        line = text.count("\n", 0, match.start()) + 1
        paragraph = match[0]
        if heading := re.match(r"#+ (.*)", paragraph):
            yield Text.of(path, heading[1], line, ANYWHERE, HEADINGS)
            paragraph = "\n" + paragraph[heading.end() :].lstrip("\n")
        pieces = re.split(r"(?<=\n)(?=\s*(?:[-*|]|\d+\.) ?)", paragraph)
        for piece in pieces:
            yield Text.of(path, re.sub(r"^\s*(?:[-*|]|\d+\.) ", "", piece), line, ANYWHERE)
            line += piece.count("\n")


def texts_of_module(path: pathlib.Path) -> Iterator[Text]:
    """Docstrings, other strings of several words, and comments. The strings of a notebook's page are Markdown."""
    source = path.read_text()
    tree = ast.parse(source)
    docstrings = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
            docstrings.add(node.body[0].value)
    nested = {part for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in ast.walk(node)} - {None}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            text = "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
            yield Text.of(path, text, node.lineno, ANYWHERE, FRAGMENTS)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in nested:
            if node in docstrings:
                yield Text.of(path, node.value, node.lineno, ANYWHERE, DOCSTRINGS)
            elif re.search(r"\S\s+\S", node.value):
                yield Text.of(path, _without_fences(node.value), node.lineno, ANYWHERE, FRAGMENTS)
    yield from _comments(path, source)


def _without_fences(text: str) -> str:
    return re.sub(r"^```.*?^```", lambda match: "\n" * match[0].count("\n"), text, flags=re.M | re.S)


def _comments(path: pathlib.Path, source: str) -> Iterator[Text]:
    """Comments; lines of comments below each other are one text."""
    block, first, last = [], 0, -1
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT:
            continue
        line, column = token.start
        alone = not token.line[:column].strip()
        if not (alone and line == last + 1):
            if block:
                yield Text.of(path, "\n".join(block), first, ANYWHERE, FRAGMENTS)
            block, first = [], line
        block.append(token.string.lstrip("#! "))
        last = line
    if block:
        yield Text.of(path, "\n".join(block), first, ANYWHERE, FRAGMENTS)


def problems_of(paths: list[pathlib.Path]) -> list[str]:
    texts = (text for path in paths for text in (texts_of_page if path.suffix == ".md" else texts_of_module)(path))
    return [problem for text in texts for problem in text.problems()]


def name_of(path: pathlib.Path) -> str:
    relative = path.relative_to(ROOT)
    return "/".join(relative.parts[:2]) if relative.parts[0] == "deeplab_jax" else relative.parts[0]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_pages_read_as_a_native_engineer_would_write_them(page):
    problems = problems_of([page])
    assert not problems, "\n" + "\n".join(problems)


@pytest.mark.parametrize("folder", sorted({name_of(path) for path in MODULES}))
def test_docstrings_comments_help_and_messages_do(folder):
    problems = problems_of([path for path in MODULES if name_of(path) == folder])
    assert not problems, "\n" + "\n".join(problems)


# ---- The rules themselves ----

BAD = (
    "It is no file of the package.",
    "The pixels that are no class",
    "A picture of a cat.",
    "void pixels count",
    "makes it anew",
    "by so many steps",
    "waits, as far as devices do",
    "Besides, it likewise helps.",
    "It works all the same, though.",
    "mend it and go on",
    "a name behind the colon",
    "the folder cannot be made",
    "how its file is had",
    "27 frames a second",
    "15 GB a chip",
    "takes 20 ms a step",
    "one a line",
    "the archive lies in the cache",
    "colour, grey, normalised and labelled",
    "What a run is. More.",
    "It ends. What remains is kept.",
    "seconds is no number",
    "It gathers rows, for they are small.",
)  # fmt: skip
GOOD = (
    "There is no file of that name.",
    "there\n  are no classes",
    "It is no longer needed, and is no larger than before.",
    "avoid voids",
    "It has as many steps as that, so that many steps pass.",
    "They are all the same size; the values are all the same.",
    "It runs behind a proxy and falls behind; the ideas behind them",
    "27 frames per second; the seconds a step takes",
    "after one step a checkpoint is written",
    "The value lies between 0 and 1.",
    "What does it print? It prints one line.",
    "It knows what to do, and waits for it.",
    "Analyses of colors otherwise promise precise noise.",
    "`picture` and `eval.void` are the old names",
)  # fmt: skip


@pytest.mark.parametrize("text", BAD)
def test_habits_are_found(text):
    assert list(Text.of(ROOT / "x.md", text, 1, ANYWHERE).problems())


@pytest.mark.parametrize("text", GOOD)
def test_good_english_passes(text):
    assert not list(Text.of(ROOT / "x.md", text, 1, ANYWHERE).problems())


def test_headings_docstrings_and_fragments_have_rules_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr("tests.test_prose.ROOT", tmp_path)
    (tmp_path / "page.md").write_text(
        "# What is kept?\n\nText.\n\n```\na void picture\n```\n- an item\n  of a picture\n"
    )
    assert [problem.split()[0] for problem in problems_of([tmp_path / "page.md"])] == ["page.md:1:", "page.md:9:"]
    module = """
        \'\'\'What it is.\'\'\'

        HELP = "of the network"  # of a picture
        NAME = "void"
        def run(seconds):
            \'\'\'Runs.

            Args:
              seconds: of a step.
            \'\'\'
            raise ValueError(f"{seconds} is no " "number")
    """
    (tmp_path / "module.py").write_text(textwrap.dedent(module).strip())
    found = [problem.split(" (")[0] for problem in problems_of([tmp_path / "module.py"])]
    assert sorted(found) == [
        "module.py:11: 'is no n'",
        "module.py:1: 'What '",
        "module.py:3: 'of a'",
        "module.py:3: 'of the'",
        "module.py:3: 'picture'",
        "module.py:9: 'seconds: of a'",
    ]
