"""What the server answers before the app is asked: a request that is not HTTP."""

import json
import logging
import uuid

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from app.errors import MEDIA_TYPE, MalformedRequest, problem_content, status_of

_log = logging.getLogger("bitpress.access")


class ProblemProtocol(H11Protocol):
    """HTTP/1.1 by uvicorn and h11, with the server's own refusal as a problem document."""

    def send_400_response(self, msg: str) -> None:
        """Refuse what cannot be read as HTTP and close the connection."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            # An answer is on its way already, and a second one would be read as part of it.
            self.transport.close()
            return
        error = MalformedRequest(
            "The request is not valid HTTP/1.1.",
            remedy="Check its request line, its headers and the framing of its body.",
        )
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
            h11.Response(status_code=status, headers=headers, reason=b"Bad Request"),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
        _log.info("request refused", extra={"status": status, "request_id": request_id})
