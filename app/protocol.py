"""What the server answers itself: to a request that is not HTTP, or never comes whole."""

import json
import logging
import sys
import uuid
from http import HTTPStatus

import h11

from app.errors import MEDIA_TYPE, MalformedRequest, problem_content, status_of
from app.event_response import ON_STOP
from app.metrics import Metrics
from app.patience import TimedProtocol
from store.errors import BitpressError

_log = logging.getLogger("bitpress.access")


class ProblemProtocol(TimedProtocol):
    """HTTP/1.1 by uvicorn and h11, with the server's own refusal as a problem document."""

    def shutdown(self) -> None:
        """Finish the answer under way; one that has no end of its own is told to stop."""
        super().shutdown()
        if self.cycle is not None and not self.cycle.response_complete:
            stop = self.scope.get(ON_STOP)
            if callable(stop):
                stop()
                if self.flow.write_paused:
                    # The client takes nothing, and would have to be waited for.
                    self.transport.abort()

    def send_400_response(self, msg: str) -> None:
        """Refuse what cannot be read as HTTP, and close the connection."""
        fault = sys.exc_info()[1]
        if getattr(fault, "error_status_hint", 400) == HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE:
            self.refuse(
                MalformedRequest(
                    "The request's head is larger than 64 KiB.",
                    remedy="Send fewer or shorter headers, and a shorter URL.",
                )
            )
            return
        self.refuse(
            MalformedRequest(
                "The request is not valid HTTP/1.1.",
                remedy="Check its request line, its headers and the framing of its body.",
            )
        )

    def refuse(self, error: BitpressError) -> None:
        """Answer with the problem that ``error`` is, and close the connection."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            # An answer is on its way already, and a second one would be read as part of it.
            self.transport.close()
            return
        request_id = uuid.uuid4().hex
        status = status_of(error)
        body = json.dumps(problem_content(error.problem(), status, request_id)).encode()
        headers = [
            ("content-type", MEDIA_TYPE),
            ("content-length", str(len(body))),
            ("connection", "close"),
            ("x-request-id", request_id),
        ]
        for event in (
            h11.Response(
                status_code=status, headers=headers, reason=HTTPStatus(status).phrase.encode()
            ),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
        # What is no request never comes to the layer that counts requests.
        metrics = getattr(getattr(self.config.app, "state", None), "metrics", None)
        if isinstance(metrics, Metrics):
            metrics.observe_request("", "unmatched", status, 0.0)
            metrics.count_error(error.code)
        _log.info(
            "request refused",
            extra={"status": status, "reason": error.code, "request_id": request_id},
        )
