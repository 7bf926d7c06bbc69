"""Queue mail on a message broker: job stores, enqueueing, detection of the broker, and the retry decision.

Importing this package loads no broker's client library.
"""

from openviper.core.email.queue.enqueue import enqueue_email_job, worker_available
from openviper.core.email.queue.names import QUEUE, mailer_of, queue_of
from openviper.core.email.queue.service import (
    JobQueue,
    QueueEntry,
    QueueService,
    close_queue,
    configured_broker,
    current_key_store,
    current_queue,
    queue_service,
    using_queue,
)
from openviper.core.email.queue.stored import StoredMail, outbox_jobs, stored_mail

__all__ = [
    "QUEUE",
    "JobQueue",
    "QueueEntry",
    "QueueService",
    "StoredMail",
    "close_queue",
    "configured_broker",
    "current_key_store",
    "current_queue",
    "enqueue_email_job",
    "mailer_of",
    "outbox_jobs",
    "queue_of",
    "queue_service",
    "stored_mail",
    "using_queue",
    "worker_available",
]
