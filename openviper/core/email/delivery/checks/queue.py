"""Check the broker and its workers."""

from functools import partial

from openviper.core.email.delivery.checks.result import CheckResult
from openviper.core.email.delivery.checks.waiting import in_thread
from openviper.core.email.errors import QueueUnavailable
from openviper.core.email.queue import QUEUE, QueueService, current_key_store, queue_of, queue_service
from openviper.core.email.queue.keys import process_keys
from openviper.core.email.queue.remedy import START_BROKER, broker_remedy
from openviper.core.email.settings import EmailSettings
from openviper.exceptions import MissingDependency

__all__ = ["check_keys", "check_queue"]


def check_keys(settings: EmailSettings | None) -> CheckResult:
    """Find out who shares idempotency keys. ``settings`` None: mail does not leave this process."""
    store = process_keys if settings is None else current_key_store()
    where = store.describe()
    if store.shared:
        return CheckResult.ok("keys", f"shared by all processes through {where}")
    remedy = 'set TASKS["broker"] to "redis" if several processes send with key='
    if settings is None:
        return CheckResult.ok("keys", f"kept in {where}, as its mail is")
    return CheckResult.ok("keys", f"kept in {where}; {remedy}")


async def check_queue(settings: EmailSettings | None, mailer: str, deadline: float) -> tuple[CheckResult, CheckResult]:
    """Check broker and the mailer's workers until ``deadline`` (loop time). ``settings`` None: no queue is used."""
    if settings is None:
        return _both_skipped("not used: mail does not leave this process")
    service = queue_service()
    if service is None:
        return _both_skipped('none: TASKS["broker"] is not "redis" or "rabbitmq"')
    if settings.use_background_worker is False:
        return _both_skipped('not used: EMAIL["use_background_worker"] is False')
    address = service.settings.address
    unreached = CheckResult.skipped("worker", "not reached")
    try:
        await in_thread(partial(_probe, service), deadline)
    except MissingDependency as error:
        return CheckResult.failed("broker", str(error), "install it"), unreached
    except (QueueUnavailable, TimeoutError) as error:
        return _broker_failure(address, error), unreached
    try:
        queue = queue_of(mailer)
        count = await in_thread(partial(service.consumers, queue), deadline)
    except (QueueUnavailable, TimeoutError) as error:
        worker = CheckResult.failed(
            "worker", f"cannot be counted: {str(error) or 'no answer in time'}", "look at the broker's log"
        )
    else:
        worker = _worker(count, queue)
    return CheckResult.ok("broker", f"{address} answers"), worker


def _broker_failure(address: str, error: QueueUnavailable | TimeoutError) -> CheckResult:
    remedy = broker_remedy(error)
    if remedy is not None:
        return CheckResult.failed("broker", f"{address} accepts no mail: {error}", remedy)
    reason = str(error) or "no answer in time"
    remedy = f"{START_BROKER}; until then mail is not queued"
    return CheckResult.failed("broker", f"{address} does not answer: {reason}", remedy)


def _probe(service: QueueService) -> None:
    service.store.probe()  # the store's first use imports the client library, which would block the event loop


def _worker(count: int, queue: str) -> CheckResult:
    if count:
        return CheckResult.ok("worker", f"workers on the queue {queue}: {count}")
    remedy = "start one: viperctl runworker"
    if queue != QUEUE:
        remedy += "; restart those that started before the settings named this mailer"
    remedy += " (docs: troubleshooting#stays-queued)"
    return CheckResult.failed("worker", f"no worker consumes the queue {queue}", remedy)


def _both_skipped(why: str) -> tuple[CheckResult, CheckResult]:
    return CheckResult.skipped("broker", why), CheckResult.skipped("worker", "not needed")
