"""The broker, and whether somebody takes mail from it."""

from functools import partial

from openviper.cli.check.finding import Finding
from openviper.cli.check.waiting import in_thread
from openviper.core.email.errors import QueueUnavailable
from openviper.core.email.queue import QueueService, queue_service
from openviper.core.email.settings import EmailSettings
from openviper.exceptions import MissingDependency

__all__ = ["check_queue"]


async def check_queue(settings: EmailSettings | None, deadline: float) -> tuple[Finding, Finding]:
    """Findings for broker and worker, by ``deadline`` (loop time). ``settings`` None: the backend keeps mail itself."""
    if settings is None:
        return _both_skipped("not used: the backend keeps mail in this process")
    service = queue_service()
    if service is None:
        return _both_skipped('none: TASKS["broker"] is not "redis" or "rabbitmq"')
    if settings.use_background_worker is False:
        return _both_skipped('not used: EMAIL["use_background_worker"] is False')
    address = service.settings.address
    unseen = Finding.skipped("worker", "not reached")
    try:
        await in_thread(partial(_probe, service), deadline)
    except MissingDependency as error:
        return Finding.failed("broker", str(error), "install it"), unseen
    except (QueueUnavailable, TimeoutError) as error:
        reason = str(error) or "no answer in time"
        remedy = 'start it, or correct TASKS["broker_url"]; until then mail goes without the queue'
        return Finding.failed("broker", f"{address} does not answer: {reason}", remedy), unseen
    try:
        count = await in_thread(service.consumers, deadline)
    except (QueueUnavailable, TimeoutError) as error:
        worker = Finding.failed(
            "worker", f"cannot be seen: {str(error) or 'no answer in time'}", "look at the broker's log"
        )
    else:
        worker = _worker(count)
    return Finding.ok("broker", f"{address} answers"), worker


def _probe(service: QueueService) -> None:
    service.spool.probe()  # the first use of the spool imports the client library, which belongs into the thread


def _worker(count: int) -> Finding:
    if count:
        return Finding.ok("worker", f"workers on the emails queue: {count}")
    return Finding.failed("worker", "nobody takes mail from the queue", "start one: viperctl runworker")


def _both_skipped(why: str) -> tuple[Finding, Finding]:
    return Finding.skipped("broker", why), Finding.skipped("worker", "not needed")
