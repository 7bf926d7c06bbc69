"""``viperctl runworker PATH``: run tasks and deliver queued mail, in several processes."""

import asyncio
import json
import logging
import os
import sys
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from openviper.cli.options import project_path, settings_option
from openviper.cli.project import Project, enter_project
from openviper.cli.sourcewatch import hang_up_on_change
from openviper.cli.transport import describe_transport
from openviper.text import shown

if TYPE_CHECKING:
    from openviper.tasks import TaskSettings

__all__ = ["runworker"]


@click.command()
@project_path
@click.argument("more_queues", nargs=-1, metavar="")
@click.option(
    "--queues",
    "-q",
    multiple=True,
    metavar="NAME",
    help="Queue to consume; may be repeated. emails: those of all mailers. Default: all queues.",
)
@click.option("--processes", "-p", type=click.IntRange(1, 256), help="Number of processes. Default: one for each CPU.")
@click.option(
    "--threads", "-t", type=click.IntRange(1, 1024), default=8, show_default=True, help="Threads of each process."
)
@click.option("--watch", is_flag=True, help="Restart when a source file of the project changes.")
@click.option("--pid-file", type=click.Path(dir_okay=False, path_type=Path), help="Write the process id to this file.")
@click.option("--verbose", "-v", count=True, help="Log more.")
@settings_option
def runworker(
    path: Path,
    more_queues: tuple[str, ...],
    queues: tuple[str, ...],
    processes: int | None,
    threads: int,
    watch: bool,
    pid_file: Path | None,
    verbose: int,
    settings: str | None,
) -> None:
    """Run the tasks of the project folder PATH and deliver its queued mail, until SIGTERM or Ctrl+C.

    After the first signal the tasks in progress finish, and the exit status is 0; a further one ends them at once,
    unless it follows within 2.5 seconds. If one of the processes dies, all end; let a supervisor restart the worker.
    """
    if more_queues and not queues:
        raise click.UsageError(f"unexpected arguments: {' '.join(more_queues)}; name queues with --queues")
    if not hasattr(os, "fork"):
        raise click.ClickException(
            f"runworker needs a POSIX system, and this is {sys.platform}: its processes are forked and stopped by "
            "signals; run it on Linux, in a container or WSL. Everything else works here"
        )
    names = tuple(name for given in (*queues, *more_queues) for name in given.split(",") if name)
    pid_file = None if pid_file is None else pid_file.resolve()
    if watch:
        hang_up_on_change(path.resolve())
    project = enter_project(path, settings_module=settings)
    project.load_settings()
    tasks = _checked_settings(project)
    names = _with_further_mailers(names)
    _check_modules(project.folder)
    _check_broker(tasks)
    run = _Run(project.folder, names, processes or os.cpu_count() or 1, threads, watch, pid_file, verbose)
    _print_banner(tasks, run)
    # Dramatiq's runner restarts itself with sys.argv, whose folder and program may be relative.
    sys.argv = run.restart_command()
    sys.exit(_start(run))


@dataclass(frozen=True, slots=True)
class _Run:
    """Options of one run. No ``queues`` means all."""

    folder: Path
    queues: tuple[str, ...]
    processes: int
    threads: int
    watch: bool
    pid_file: Path | None
    verbose: int

    def restart_command(self) -> list[str]:
        """Return the command that repeats this run from any folder."""
        command = [sys.executable, "-m", "openviper.cli", "viperctl", "runworker", str(self.folder)]
        command += [word for name in self.queues for word in ("--queues", name)]
        command += ["--watch"] if self.watch else []
        return command + self._shared_options()

    def runner_arguments(self) -> list[str]:
        """Return the arguments for Dramatiq's runner."""
        arguments = ["openviper.cli.workerprocess:boot", "--path", str(self.folder), *self._shared_options()]
        return arguments + (["--queues", *self.queues] if self.queues else [])

    def _shared_options(self) -> list[str]:
        options = ["--processes", str(self.processes), "--threads", str(self.threads), *["-v"] * self.verbose]
        return options + ([] if self.pid_file is None else ["--pid-file", str(self.pid_file)])


def _with_further_mailers(names: tuple[str, ...]) -> tuple[str, ...]:
    """Add to the default mailer's queue those of the others."""
    from openviper.core.email.queue.names import QUEUE, configured_queues

    more = configured_queues() if QUEUE in names else ()
    return tuple(dict.fromkeys((*names, *more)))


def _checked_settings(project: Project) -> "TaskSettings":
    from openviper.core.email.delivery.signing import Signing
    from openviper.core.email.settings import EmailSettings
    from openviper.tasks import TaskSettings

    email = EmailSettings.from_settings()
    asyncio.run(Signing.load(email))  # else each job would fail for a key that cannot be read
    tasks = TaskSettings.from_settings()
    if not tasks.enabled:
        raise click.ClickException(
            'no broker is configured: set TASKS = {"broker": "redis", "broker_url": "redis://..."}; '
            + project.settings_origin()
        )
    if not tasks.real:
        raise click.ClickException(
            'TASKS["broker"]: the stub broker exists in one process and has no workers; use "redis" or "rabbitmq"'
        )
    return tasks


def _check_modules(folder: Path) -> None:
    from openviper.cli.workerprocess import task_modules

    for name in task_modules(folder):
        try:
            found = find_spec(name) is not None
        except ModuleNotFoundError:
            found = False
        if not found:
            raise click.ClickException(f'TASKS["modules"]: there is no module {shown(name)} in {folder}')


def _check_broker(tasks: "TaskSettings") -> None:
    from openviper.core.email.errors import QueueUnavailable
    from openviper.core.email.queue import queue_service
    from openviper.core.email.queue.remedy import START_BROKER, broker_remedy

    service = queue_service()
    assert service is not None
    try:
        service.store.probe(draining=True)  # workers are what makes room on a full broker
    except QueueUnavailable as error:
        reason = str(error).rstrip(".")  # the client library's own text
        remedy = broker_remedy(error) or START_BROKER
        raise click.ClickException(f"the broker ({tasks.address}) does not answer: {reason}; {remedy}") from error


def _print_banner(tasks: "TaskSettings", run: _Run) -> None:
    from openviper.core.email.settings import EmailSettings

    click.echo(f"Broker  {tasks.address}")
    click.echo(f"Queues  {', '.join(run.queues) or 'all'}")
    click.echo(f"Runs    {run.processes} process(es) with {run.threads} threads each")
    click.echo(f"Mail    {describe_transport(EmailSettings.from_settings())}")
    sys.stdout.flush()


def _start(run: _Run) -> int:
    cli: Any = import_module("dramatiq.cli")  # has no type annotations

    from openviper.cli.workerprocess import QUEUES_VARIABLE

    os.environ[QUEUES_VARIABLE] = json.dumps(run.queues)
    # Dramatiq sets the log's format and destination; our loggers report what happens to mail.
    logging.getLogger("openviper").setLevel(logging.DEBUG if run.verbose else logging.INFO)
    return int(cli.main(cli.make_argument_parser().parse_args(run.runner_arguments())))
