"""`quadriga doctor`: prints the results of all checks, and how many problems there are."""

from pathlib import Path

from rich.console import Console
from rich.text import Text

from quadriga.launch.checks.machine import check_machine
from quadriga.launch.checks.report import CheckResult
from quadriga.orchestrator.stages.registry import AnyStage

MARKS = {"ok": ("ok  ", "green"), "note": ("note", "yellow"), "problem": ("FAIL", "bold red")}
"""Level of a result -> its mark and style."""


def doctor(stage: AnyStage | None, console: Console, config: Path | None = None) -> int:
    """Print the checks of this machine and, if given, of a loaded config. Return the number of problems.

    config: the file that the stage was loaded from.
    """
    problems = 0
    with console.status("Checking this machine"):
        for result in check_machine():
            problems += _print(result, console)
    if stage is not None:
        from quadriga.launch.checks.stage import check_config

        console.print(f"\n{config}", style="bold", highlight=False)
        with console.status("Checking the config"):
            results = check_config(stage)
        for result in results:
            problems += _print(result, console)
        if stage.cluster.ssh is not None:
            problems += hosts(stage, console)
    verdict = "Everything is in order." if not problems else f"{problems} problem{'s' * (problems > 1)} to fix."
    console.print(verdict, style="green" if not problems else "bold red")
    return problems


def hosts(stage: AnyStage, console: Console) -> int:
    """Check the hosts of `cluster.ssh` and print the results. Return the number of problems."""
    from quadriga.launch.ssh.hosts import ssh_settings
    from quadriga.launch.ssh.preflight import run_preflight

    with console.status("Checking the hosts"):
        report = run_preflight(stage)
    console.print(report.table(ssh_settings(stage)))
    return sum(_print(problem, console) for problem in report.problems)


def _print(result: CheckResult, console: Console) -> bool:
    """Print one result and return whether it is a problem."""
    mark, style = MARKS[result.level]
    console.print(Text.assemble((mark, style), "  ", (f"{result.subject}: ", "dim"), result.text))
    return result.level == "problem"
