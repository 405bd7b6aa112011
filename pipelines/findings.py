"""What was found on a machine: one finding a line, a screen of them, and the verdict."""

import textwrap
from dataclasses import dataclass
from typing import Literal

Mark = Literal["ok", "warn", "FAIL"]


@dataclass(frozen=True)
class Finding:
    """One line: how bad it is, of what, what was found, and what to do about it."""

    mark: Mark
    name: str
    found: str
    advice: str = ""


def can_run(findings: list[Finding]) -> bool:
    """Whether nothing found would stop the main job."""
    return all(finding.mark != "FAIL" for finding in findings)


def ability(findings: list[Finding]) -> str:
    """What the main job can do here, where nothing stops it."""
    lacks = [finding.name for finding in findings if finding.name.startswith("lpips-") and finding.mark != "ok"]
    without = f" (without {', '.join(lacks)}: presets that use it stop and say so, or take --loss.lpips 0)" if lacks else ""
    return f"the main job can run{without}"


def screen(findings: list[Finding], *, width: int = 100, colour: bool = False) -> str:
    """The findings as lines of at most `width` characters; the advice stands under what it is about."""
    codes = {"ok": "32", "warn": "33", "FAIL": "31"}
    lines: list[str] = []
    for finding in findings:
        mark = f"{finding.mark:<4}"
        indent = " " * 21
        text = textwrap.wrap(finding.found, width - len(indent), break_on_hyphens=False) or [""]
        shown = f"\033[{codes[finding.mark]}m{mark}\033[0m" if colour else mark
        lines.append(f"{shown}  {finding.name:<15}{text[0]}")
        lines += [indent + line for line in text[1:]]
        lines += textwrap.wrap(finding.advice, width, initial_indent=f"{indent}→ ", subsequent_indent=f"{indent}  ",
                               break_on_hyphens=False)
    counts = {mark: sum(finding.mark == mark for finding in findings) for mark in codes}
    verdict = ability(findings) if can_run(findings) else "the main job cannot run: mend what is marked FAIL"
    lines += ["", f"{counts['ok']} ok, {counts['warn']} warn, {counts['FAIL']} FAIL: {verdict}"]
    return "\n".join(lines)
