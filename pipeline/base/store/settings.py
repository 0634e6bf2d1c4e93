"""How one bucket is reached."""

from __future__ import annotations

from pydantic import Field

from pipeline.base.config import Config


class BucketSettings(Config):
    """How one bucket is reached. Credentials never stand here: name a profile, or leave it to boto3's chain."""

    endpoint: str | None = Field(
        default=None, description="http(s) address; default: AWS_ENDPOINT_URL, else AWS itself"
    )
    region: str | None = None
    profile: str | None = Field(default=None, description="profile of the shared credentials file")
    anonymous: bool = False
    requester_pays: bool = False
    connections: int = Field(default=16, ge=1, le=1024, description="held open at once")
    low_speed_bytes: int = Field(default=1000, ge=0, description="bytes a second; slower answers are broken off")
    low_speed_seconds: float = Field(default=30.0, gt=0, description="how long an answer may be slower, or stand still")


Stores = dict[str, BucketSettings]  # bucket name -> settings
