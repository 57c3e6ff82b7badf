"""How wire models are read: frozen, and deaf to members that a newer service adds."""

from pydantic import BaseModel, ConfigDict


class Wire(BaseModel):
    """Something that travels between client and service."""

    model_config = ConfigDict(frozen=True, extra="ignore")
