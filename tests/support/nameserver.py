"""A name server on loopback that answers questions about TXT records.

::

    with Nameserver({"shop.some-domain.net": ["v=spf1 -all"]}) as nameserver:
        (project / "settings.py").write_text(nameserver.resolver_settings())

A name that it does not know does not exist (NXDOMAIN); one whose records are None gets SERVFAIL.
"""

import socketserver
import threading
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

from dns import message, rcode, rrset

__all__ = ["Nameserver"]

# dnspython has its resolver in a module's variable, which an application may replace.
_SETTINGS = """\
from dns import resolver

resolver.default_resolver = resolver.Resolver(configure=False)
resolver.default_resolver.nameservers = [{host!r}]
resolver.default_resolver.port = {port}
"""


class Nameserver:
    """See the module's docstring. A string of ``records`` is one record; quoted parts make it several strings."""

    def __init__(self, records: Mapping[str, Sequence[str] | None]) -> None:
        self._records = records
        self._server = socketserver.ThreadingUDPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})

    def resolver_settings(self) -> str:
        """Return lines for a settings module that make dnspython ask this server."""
        host, port = self._server.server_address[:2]
        return _SETTINGS.format(host=host, port=port)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _handler(self) -> type[socketserver.BaseRequestHandler]:
        nameserver = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                data, socket = self.request
                socket.sendto(nameserver.answer(data), self.client_address)

        return Handler

    def answer(self, query: bytes) -> bytes:
        """Return the response to ``query``, both in the wire format of RFC 1035 section 4."""
        asked = message.from_wire(query)
        response = message.make_response(asked)
        name = asked.question[0].name
        records = self._records.get(name.to_text(omit_final_dot=True), [])
        if records is None:
            response.set_rcode(rcode.SERVFAIL)
        elif records:
            response.answer.append(rrset.from_text_list(name, 60, "IN", "TXT", records))
        else:
            response.set_rcode(rcode.NXDOMAIN)
        return response.to_wire()
