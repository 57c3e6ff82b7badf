"""A typed httpx client and the ``bitpress`` command line built on it."""

from client.async_client import AsyncClient as AsyncClient
from client.client import Client as Client
from client.errors import BitpressProblem as BitpressProblem
from client.errors import ClientError as ClientError
from client.errors import raise_for_end as raise_for_end
from client.session import Retries as Retries
from client.types import CompressSpec as CompressSpec
from client.types import InputShape as InputShape
