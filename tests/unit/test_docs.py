"""What the documentation points at exists: files, headings, commands and their options."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import click
import pytest

from swamp_ray.cli import main

REPOSITORY = Path(__file__).resolve().parents[2]
SHELLS = ("", "sh", "bash", "shell", "console")
FENCE = re.compile(
    r"^ {0,3}(?P<fence>`{3,}|~{3,})(?P<language>[\w-]*)[^\n]*\n(?P<body>.*?)^ {0,3}(?P=fence)[`~]*[ \t]*$", re.M | re.S
)
INLINE_LINK = re.compile(r"\]\(\s*<?([^)\s>]+)>?(?:\s+[\"'(][^)]*)?\)")
REFERENCE = re.compile(r"^ {0,3}\[[^\]]+\]:\s*<?(\S+?)>?(?:\s|$)", re.M)
HTML_LINK = re.compile(r"<(?:a|img|source)\b[^>]*?\b(?:href|src|srcset)=[\"']([^\"']+)[\"']", re.I)


def markdown_files() -> list[Path]:
    """Markdown files of the repository: tracked, or about to be."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "*.md"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode == 0:
        return sorted({REPOSITORY / name for name in listed.stdout.split("\0") if (REPOSITORY / name).is_file()})
    hidden = (path for path in REPOSITORY.rglob("*.md") if not path.relative_to(REPOSITORY).parts[0].startswith("."))
    return sorted(hidden)


def without_code(text: str) -> str:
    return re.sub(r"`[^`\n]+`", "", FENCE.sub("", text))


def links(text: str) -> list[str]:
    """Targets of links and images that lie in the repository."""
    prose = without_code(text)
    found = [*INLINE_LINK.findall(prose), *REFERENCE.findall(prose), *HTML_LINK.findall(prose)]
    return [target for target in found if not re.match(r"[a-z][a-z0-9+.-]*:|//", target, re.I)]


def anchors(text: str) -> set[str]:
    """The ids that GitHub gives to a page's headings, and those written as HTML."""
    prose = FENCE.sub("", text)
    seen: dict[str, int] = {}
    ids = set(re.findall(r"<[^>]*?\b(?:id|name)=[\"']([^\"']+)[\"']", prose))
    for heading in re.findall(r"^ {0,3}#{1,6}\s+(.*?)\s*#*\s*$", prose, re.M):
        plain = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").lower()
        slug = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        ids.add(f"{slug}-{seen[slug]}" if slug in seen else slug)
        seen[slug] = seen.get(slug, 0) + 1
    return ids


def broken_links(page: Path) -> Iterator[str]:
    for target in links(page.read_text()):
        path, _, anchor = unquote(target).partition("#")
        base = REPOSITORY if path.startswith("/") else page.parent
        file = base / path.lstrip("/") if path else page
        if not file.exists():
            yield f"{target}: there is no {os.path.relpath(file, REPOSITORY)}"
        elif anchor and file.suffix == ".md" and anchor.lower() not in anchors(file.read_text()):
            yield f"{target}: {os.path.relpath(file, REPOSITORY)} has no heading #{anchor}"


def commands(text: str) -> Iterator[list[str]]:
    """Arguments of every `swamp ...` in a page's shell blocks."""
    for block in FENCE.finditer(text):
        if block["language"] not in SHELLS:
            continue
        for line in re.sub(r"\\\n\s*", " ", block["body"]).splitlines():
            yield from _commands_of_line(line)


def _commands_of_line(line: str) -> Iterator[list[str]]:
    lexer = shlex.shlex(line.strip().removeprefix("$ "), posix=True, punctuation_chars="|&;<>")
    lexer.whitespace_split = True
    try:
        words = list(lexer)
    except ValueError:  # prose or output with an apostrophe, not a command line
        return
    call: list[str] = []
    for word in [*words, ";"]:
        if set(word) <= set("|&;<>"):
            yield from _arguments(call)
            call = []
        else:
            call.append(word)


def _arguments(words: list[str]) -> Iterator[list[str]]:
    while words and re.match(r"\w+=", words[0]):
        words = words[1:]
    if words and Path(words[0]).name == "swamp":
        yield words[1:]
    elif len(words) > 2 and Path(words[0]).name.startswith("python") and words[1:3] == ["-m", "swamp_ray"]:
        yield words[3:]


def wrong_use(command: click.Command, arguments: list[str]) -> str | None:
    """What click would refuse in a command line, without running it."""
    name = command.name or "swamp"
    context = click.Context(command, info_name=name)
    try:
        values, rest, seen = command.make_parser(context).parse_args(list(arguments))
        _check_choices(command, context, values)
    except click.UsageError as error:
        return f"{name}: {error.format_message()}"
    if any(parameter.is_eager for parameter in seen):  # --help and --version end there
        return None
    if isinstance(command, click.Group):
        if not rest:
            return None
        inner = command.get_command(context, rest[0])
        return wrong_use(inner, rest[1:]) if inner else f"{name} has no command {rest[0]!r}"
    if rest:
        return f"{name}: unexpected {' '.join(rest)}"
    missing = [p.human_readable_name for p in command.params if p.required and _given(p, values) is None]
    return f"{name}: missing {', '.join(missing)}" if missing else None


def _given(parameter: click.Parameter, values: dict[str, Any]) -> Any:
    """What the command line says for a parameter, None for nothing (click marks that in its own way)."""
    value = values.get(parameter.name or "")
    return None if parameter.value_is_missing(value) else value


def _check_choices(command: click.Command, context: click.Context, values: dict[str, Any]) -> None:
    for parameter in command.params:
        given = _given(parameter, values)
        if isinstance(parameter.type, click.Choice) and given is not None:
            for value in given if isinstance(given, list | tuple) else [given]:
                parameter.type.convert(value, parameter, context)


each_page = pytest.mark.parametrize("page", markdown_files(), ids=lambda page: page.relative_to(REPOSITORY).as_posix())


@each_page
def test_relative_links_lead_somewhere(page: Path) -> None:
    assert list(broken_links(page)) == []


@each_page
def test_commands_exist_with_their_options(page: Path) -> None:
    assert isinstance(main, click.Group)
    found = {f"swamp {shlex.join(words)}": wrong_use(main, words) for words in commands(page.read_text())}
    assert {line: complaint for line, complaint in found.items() if complaint} == {}


@each_page
def test_commands_name_shipped_configs_that_exist(page: Path) -> None:
    named = {word for words in commands(page.read_text()) for word in words if word.startswith("configs/")}
    assert [name for name in sorted(named) if not (REPOSITORY / name).is_file()] == []


class TestTheReaderOfPages:
    """The tests above are worth as much as what they find."""

    def test_finds_links_of_every_form(self) -> None:
        text = "[a](x.md) ![b](y.png \"title\") [c]\n\n[c]: z.md#here\n<img src='w.svg'> [d](https://e.org)"
        assert links(text) == ["x.md", "y.png", "z.md#here", "w.svg"]

    def test_ignores_links_in_code(self) -> None:
        assert links("`[a](x.md)`\n\n```python\nd[k](y.md)\n```\n") == []

    def test_names_missing_files_and_headings(self, tmp_path: Path) -> None:
        page = tmp_path / "page.md"
        page.write_text("# One\n[a](none.md) [b](#one) [c](#two) [d](page.md#one)")
        assert [problem.partition(":")[0] for problem in broken_links(page)] == ["none.md", "#two"]

    def test_anchors_are_those_of_github(self) -> None:
        assert anchors("# A `b_c`, d!\n## A b\n## A b\n```sh\n# no\n```\n") == {"a-b_c-d", "a-b", "a-b-1"}

    def test_finds_commands(self) -> None:
        text = (
            "```sh\n$ swamp run a.yaml \\\n    --set x=1  # why\nA=1 .venv/bin/swamp doctor | tee log && echo swamp\n"
            "python -m swamp_ray status r > out\n```\n```python\nswamp = 1\n```\n    swamp indented\n"
        )
        assert list(commands(text)) == [["run", "a.yaml", "--set", "x=1"], ["doctor"], ["status", "r"]]

    @pytest.fixture
    def tool(self) -> click.Group:
        @click.group()
        def tool() -> None: ...

        @tool.command()
        @click.argument("config")
        @click.option("--executor", type=click.Choice(["ray", "inline"]))
        @click.option("--set", "changes", multiple=True)
        def run(config: str, executor: str, changes: tuple[str, ...]) -> None:
            raise AssertionError("a command of the documentation was run")

        return tool

    @pytest.mark.parametrize(
        ("line", "complaint"),
        [
            ("run a.yaml --executor ray --set a=1 --set b=2", None),
            ("run --help", None),
            ("--help", None),
            ("", None),
            ("walk", "no command 'walk'"),
            ("run", "missing CONFIG"),
            ("run a.yaml b.yaml", "unexpected b.yaml"),
            ("run a.yaml --colour", "--colour"),
            ("run a.yaml --set", "--set"),
            ("run a.yaml --executor slurm", "slurm"),
        ],
    )
    def test_says_what_click_would_refuse(self, tool: click.Group, line: str, complaint: str | None) -> None:
        said = wrong_use(tool, line.split())
        assert said is None if complaint is None else said is not None and complaint in said
