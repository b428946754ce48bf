"""``doctor``: what is wrong with this installation, and how to mend it."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from myllm_cli.context import Cli
from myllm_cli.models import JsonOption
from myllm_cli.tables import print_json
from myllm_cli.terminal import StatusLine, clean_line, fancy
from myllm_cli.views import styled

_LOOKS = {"ok": "\x1b[32m", "warning": "\x1b[33m", "problem": "\x1b[31m"}


def doctor(
    ctx: typer.Context,
    online: Annotated[bool, typer.Option("--online", help="Also try whether the catalogue's sources answer.")] = False,
    json: JsonOption = False,
) -> None:
    """Say what is wrong with this installation, and how to mend it; exit code 1 when there is a problem."""
    from myllm_cli.checks import examine

    cli: Cli = ctx.obj
    status = StatusLine()
    findings = []
    begin = (lambda name: status.show(f"Checking {name} …")) if fancy(sys.stderr) else (lambda name: None)
    for finding in examine(cli, online, begin):
        findings.append(finding)
        status.clear()
        if not json:
            word = styled(f"{finding.status:<7}", _LOOKS[finding.status], sys.stdout)
            print(f"{word}  {finding.check}: {clean_line(finding.message)}")
            if finding.fix:
                print(f"         mend: {clean_line(finding.fix)}")
    if json:
        print_json([finding.to_json() for finding in findings])
    if any(finding.status == "problem" for finding in findings):
        raise typer.Exit(1)
