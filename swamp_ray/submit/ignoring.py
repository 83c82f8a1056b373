"""Files that ``.gitignore`` and ``.rayignore`` name, by git's rules, inside a repository or out of one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

GITIGNORE = ".gitignore"
RAYIGNORE = ".rayignore"
IGNORE_FILES = (GITIGNORE, RAYIGNORE)


@dataclass(frozen=True)
class Rule:
    """One line of an ignore file.

    Attributes:
        folder: Where the file lies, relative to the top, ``""`` for the top itself.
        pattern: What is matched against a path relative to that folder.
        negated: The line begins with ``!``: what matches is not ignored after all.
        only_folders: The line ends with a slash.
        source: Name of the ignore file.
    """

    folder: str
    pattern: re.Pattern[str]
    negated: bool
    only_folders: bool
    source: str

    def matches(self, path: str, is_folder: bool) -> bool:
        """Whether the line speaks of a path, which is relative to the top."""
        if self.only_folders and not is_folder:
            return False
        if self.folder and not path.startswith(f"{self.folder}/"):
            return False
        return self.pattern.fullmatch(path[len(self.folder) + 1:] if self.folder else path) is not None


@dataclass(frozen=True)
class Rules:
    """What the ignore files say from the top down to some folder; the last line that matches decides."""

    rules: tuple[Rule, ...] = field(default=())

    def reading(self, folder: Path, relative: str) -> Rules:
        """These rules and those of a folder's own ignore files."""
        found = [rule for name in IGNORE_FILES for rule in read_rules(folder / name, relative, name)]
        return Rules((*self.rules, *found)) if found else self

    def decides(self, path: str, is_folder: bool) -> str | None:
        """The name of the ignore file by which a path is left out, None if it is not."""
        for rule in reversed(self.rules):
            if rule.matches(path, is_folder):
                return None if rule.negated else rule.source
        return None


def read_rules(file: Path, folder: str, source: str) -> Sequence[Rule]:
    """The rules of an ignore file; none if it does not exist."""
    if not file.is_file():
        return ()
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    return [rule for line in lines if (rule := parse_rule(line, folder, source)) is not None]


def parse_rule(line: str, folder: str = "", source: str = GITIGNORE) -> Rule | None:
    """The rule of one line, None for a comment or an empty line."""
    text = re.sub(r"(?<!\\) +$", "", line)
    if not text or text.startswith("#"):
        return None
    negated = text.startswith("!")
    text = text.removeprefix("!") if negated else text
    only_folders = text.endswith("/")
    text = text.removesuffix("/")
    # A slash at the beginning or inside ties a pattern to the folder of its file.
    anchored = "/" in text
    text = text.removeprefix("/")
    if not text:
        return None
    expression = _expression(text)
    try:
        pattern = re.compile(expression if anchored else f"(?:.*/)?{expression}", re.DOTALL)
    except re.error:
        return None
    return Rule(folder, pattern, negated, only_folders, source)


def _expression(text: str) -> str:
    """A regular expression for a pattern with ``*``, ``?``, ``[...]`` and ``**``."""
    parts: list[str] = []
    index = 0
    while index < len(text):
        rest = text[index:]
        if rest.startswith("**/") and (index == 0 or text[index - 1] == "/"):
            parts.append("(?:.*/)?")
            index += 3
        elif rest == "**" and text[index - 1: index] == "/":
            parts.append(".+")
            index += 2
        elif rest[0] == "*":
            parts.append("[^/]*")
            index += len(rest) - len(rest.lstrip("*"))
        elif rest[0] == "?":
            parts.append("[^/]")
            index += 1
        elif rest[0] == "[" and (bracket := re.match(r"\[([!^]?)(\]?[^\]]*)\]", rest)):
            inside = bracket[2].replace("\\", "\\\\").replace("[", "\\[")
            parts.append(f"(?!/)[{'^' if bracket[1] else ''}{inside}]")
            index += bracket.end()
        else:
            escaped = rest[0] == "\\" and len(rest) > 1
            parts.append(re.escape(rest[1] if escaped else rest[0]))
            index += 2 if escaped else 1
    return "".join(parts)
