"""Health of the service."""

from client.wire.model import Wire


class Health(Wire):
    """The service is well."""

    status: str
