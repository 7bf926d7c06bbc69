"""``viperctl runworker PATH``: the processes that run tasks and deliver queued mail."""

import json
import logging
import os
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from openviper.cli.options import project_path, settings_option
from openviper.cli.project import enter_project

if TYPE_CHECKING:
    from openviper.tasks import TaskSettings

__all__ = ["runworker"]

# Each process keeps the delayed tasks it has fetched in memory; Dramatiq's own bound is 1,000 for each thread.
_DELAYED = "1000"


@click.command()
@project_path
@click.argument("more_queues", nargs=-1, metavar="")
@click.option(
    "--queues", "-q", multiple=True, metavar="NAME", help="A queue to work on; may be repeated. Default: all of them."
)
@click.option("--processes", "-p", type=click.IntRange(1, 256), help="Worker processes. Default: one for each CPU.")
@click.option("--threads", "-t", type=click.IntRange(1, 1024), default=8, show_default=True, help="Threads of each.")
@click.option("--watch", is_flag=True, help="Start again when a source file of the project changes.")
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

    The first signal finishes what is in hand and ends with 0. When one of the processes dies, all end; let a supervisor
    start the worker again.
    """
    if more_queues and not queues:
        raise click.UsageError(f"unexpected arguments: {' '.join(more_queues)}; queues are named with --queues")
    names = [name for given in (*queues, *more_queues) for name in given.split(",") if name]
    pid_file = None if pid_file is None else pid_file.resolve()
    project = enter_project(path, settings_module=settings)
    project.load_settings()
    tasks = _checked_settings()
    _check_modules(project.folder)
    _check_broker(tasks)
    count = processes or os.cpu_count() or 1
    _print_banner(tasks, names, count, threads)
    # The runner starts itself again with sys.argv; the folder and program it was called with may be relative.
    sys.argv = _restart_command(project.folder, names, count, threads, watch, pid_file, verbose)
    sys.exit(_run(project.folder, names, count, threads, watch, pid_file, verbose))


def _checked_settings() -> "TaskSettings":
    from openviper.core.email.settings import EmailSettings
    from openviper.tasks import TaskSettings

    EmailSettings.from_settings()
    tasks = TaskSettings.from_settings()
    if not tasks.enabled:
        raise click.ClickException(
            'there is no broker to work for: set TASKS = {"broker": "redis", "broker_url": "redis://..."}'
        )
    if not tasks.real:
        raise click.ClickException(
            'TASKS["broker"]: the stub broker lives in one process and has no workers; use "redis" or "rabbitmq"'
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
            raise click.ClickException(f'TASKS["modules"]: there is no module {name!r} in {folder}')


def _check_broker(tasks: "TaskSettings") -> None:
    from openviper.core.email.errors import QueueUnavailable
    from openviper.core.email.queue import queue_service

    service = queue_service()
    assert service is not None
    try:
        service.spool.probe()
    except QueueUnavailable as error:
        raise click.ClickException(f"the broker ({tasks.address}) does not answer: {error}") from error


def _print_banner(tasks: "TaskSettings", names: list[str], processes: int, threads: int) -> None:
    from openviper.core.email.settings import EmailSettings

    email = EmailSettings.from_settings()
    server = f" to {email.host} port {email.port}" if email.backend.rpartition(".")[2] == "SMTPBackend" else ""
    click.echo(f"Broker  {tasks.address}")
    click.echo(f"Queues  {', '.join(names) or 'all'}")
    click.echo(f"Runs    {processes} process(es) with {threads} threads each")
    click.echo(f"Mail    {email.backend}{server}")
    sys.stdout.flush()


def _restart_command(
    folder: Path,
    names: list[str],
    processes: int,
    threads: int,
    watch: bool,
    pid_file: Path | None,
    verbose: int,
) -> list[str]:
    command = [sys.executable, "-m", "openviper.cli", "viperctl", "runworker", str(folder)]
    command += [word for name in names for word in ("--queues", name)]
    command += ["--processes", str(processes), "--threads", str(threads), *["-v"] * verbose]
    command += ["--watch"] if watch else []
    return command + ([] if pid_file is None else ["--pid-file", str(pid_file)])


def _run(
    folder: Path,
    names: list[str],
    processes: int,
    threads: int,
    watch: bool,
    pid_file: Path | None,
    verbose: int,
) -> int:
    os.environ.setdefault("dramatiq_delay_queue_prefetch", _DELAYED)
    cli: Any = import_module("dramatiq.cli")  # it has no annotations

    from openviper.cli.workerprocess import QUEUES_VARIABLE

    os.environ[QUEUES_VARIABLE] = json.dumps(names)
    arguments = ["openviper.cli.workerprocess:boot", "--processes", str(processes), "--threads", str(threads)]
    arguments += ["--path", str(folder), *["--verbose"] * verbose]
    if watch:
        # Dramatiq's own patterns fit no file for watchdog 7.
        arguments += ["--watch", str(folder), "--watch-include", "**/*.py"]
    if pid_file is not None:
        arguments += ["--pid-file", str(pid_file)]
    if names:
        arguments += ["--queues", *names]
    # Its loggers tell what happened to mail; Dramatiq sets the format and where they go.
    logging.getLogger("openviper").setLevel(logging.INFO)
    return int(cli.main(cli.make_argument_parser().parse_args(arguments)))
