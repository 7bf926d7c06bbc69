"""Mail through a message broker: queueing it, and what a worker does with it.

Importing this package loads no broker's client library.
"""

from openviper.core.email.queue.enqueue import enqueue_email_job, worker_available
from openviper.core.email.queue.service import QueueService, close_queue, queue_service

__all__ = ["QueueService", "close_queue", "enqueue_email_job", "queue_service", "worker_available"]
