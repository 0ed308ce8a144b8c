"""`quadriga doctor`: what the checks find, as a table, and how many problems there are."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from quadriga.launch.checks.machine import check_machine
from quadriga.launch.checks.report import CheckResult

MARKS = {"ok": ("ok  ", "green"), "note": ("note", "yellow"), "problem": ("FAIL", "bold red")}


def doctor(stage: Any | None, console: Console, config: Path | None = None) -> int:
    """Print what is found of the machine and, where given, of a loaded config. Returns the number of problems."""
    problems = 0
    with console.status("Looking at this machine"):
        for finding in check_machine():
            problems += _print(finding, console)
    if stage is not None:
        from quadriga.launch.checks.stage import check_config

        console.print(f"\n{config}", style="bold", highlight=False)
        with console.status("Looking at the config"):
            results = check_config(stage)
        for finding in results:
            problems += _print(finding, console)
        if stage.cluster.ssh is not None:
            problems += hosts(stage, console)
    verdict = "Everything is in order." if not problems else f"{problems} problem{'s' * (problems > 1)} to fix."
    console.print(verdict, style="green" if not problems else "bold red")
    return problems


def hosts(stage: Any, console: Console) -> int:
    """Print what the hosts of `cluster.ssh` say. Returns the number of problems."""
    from quadriga.launch.ssh.preflight import run_preflight

    with console.status("Looking at the hosts"):
        found = run_preflight(stage)
    console.print(found.table(stage.cluster.ssh))
    return sum(_print(problem, console) for problem in found.problems)


def _print(finding: CheckResult, console: Console) -> bool:
    mark, style = MARKS[finding.level]
    console.print(Text.assemble((mark, style), "  ", (f"{finding.subject}: ", "dim"), finding.text))
    return finding.level == "problem"
