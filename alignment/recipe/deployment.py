"""What a recipe says about running by itself: when, how often again, and who hears how it ended."""

import zoneinfo
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from alignment.recipe.base import Count, Name, Positive, Settings

Variable = Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]{2,63}$")]  # an environment variable's name, never its value
Ending = Literal["promoted", "refused", "completed", "waiting", "failed", "cancelled", "crashed"]
ENDINGS: tuple[Ending, ...] = ("promoted", "refused", "failed", "crashed")


class Deployment(Settings):
    """When ``rlhf deploy`` starts a run. Votes that became ready start one too, whatever stands here.

    ``after_champion`` are registered names: a new champion of one, made by another recipe, starts a run.
    ``after_refusal`` are recipes: a gate of one that refuses starts a run.
    """

    cron: str | None = None  # five fields: minute, hour, day, month, weekday
    timezone: str = "UTC"
    every: Positive | None = None  # seconds, in cron's place
    after_champion: tuple[Name, ...] = ()
    after_refusal: tuple[Name, ...] = ()
    concurrent: Count = 1  # runs of this recipe at a time; more wait
    retries: Annotated[int, Field(ge=0, le=20)] = 0  # of a run that failed; the gate's refusal is no failure
    retry_seconds: Annotated[float, Field(ge=0)] = 60.0
    timeout_seconds: Positive | None = (
        None  # of one run, after which it is failed; the next goes on from its checkpoint
    )

    @model_validator(mode="after")
    def _one_clock(self) -> Self:
        if self.cron is not None and self.every is not None:
            raise ValueError("give cron or every, not both")
        try:
            if self.timezone != "UTC":  # which needs no table of time zones
                zoneinfo.ZoneInfo(self.timezone)
        except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError(f"no time zone {self.timezone!r}; write it as Europe/Berlin") from None
        return self


class Webhook(Settings):
    """A POST of JSON to the address in ``url_env``, signed with HMAC-SHA256 where ``secret_env`` names a key."""

    url_env: Variable
    secret_env: Variable | None = None


class Email(Settings):
    """A message by SMTP. User and password are the values of the variables named."""

    server: str
    port: Annotated[int, Field(ge=1, le=65535)] = 587
    security: Literal["starttls", "tls", "none"] = "starttls"
    sender: str
    to: tuple[str, ...] = Field(min_length=1)
    user_env: Variable | None = None
    password_env: Variable | None = None

    @model_validator(mode="after")
    def _both_or_none(self) -> Self:
        if (self.user_env is None) != (self.password_env is None):
            raise ValueError("user_env and password_env go together")
        return self


class Notify(Settings):
    """Who hears how a run ended. ``block`` is a notification block that was saved in Prefect, as ``type/name``."""

    on: tuple[Ending, ...] = Field(ENDINGS, min_length=1)
    webhook: Webhook | None = None
    slack: Variable | None = None  # the variable that holds an incoming webhook's address
    email: Email | None = None
    block: Annotated[str, Field(pattern=r"^[a-z0-9-]+/[\w-]+$")] | None = None

    @property
    def variables(self) -> dict[str, str]:
        """The environment variables that have to be set, by the setting that names them."""
        named = {
            "webhook.url_env": self.webhook and self.webhook.url_env,
            "webhook.secret_env": self.webhook and self.webhook.secret_env,
            "slack": self.slack,
            "email.user_env": self.email and self.email.user_env,
            "email.password_env": self.email and self.email.password_env,
        }
        return {setting: name for setting, name in named.items() if name}
