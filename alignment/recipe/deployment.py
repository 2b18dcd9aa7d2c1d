"""What a recipe says about running by itself: when, how often again, who hears how it ended, where its curves are."""

import zoneinfo
from typing import Annotated, Literal, Self, TypeAlias

from pydantic import Field, model_validator

from alignment.recipe.base import Count, Name, Positive, Settings

Variable = Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]{2,63}$")]  # an environment variable's name, never its value
Ending = Literal["promoted", "refused", "completed", "waiting", "failed", "cancelled", "crashed"]
TrackerName: TypeAlias = Literal["mlflow", "tensorboard", "wandb"]
TRACKERS: dict[TrackerName, str] = {"mlflow": "mlflow", "tensorboard": "tensorboardX", "wandb": "wandb"}  # packages
ENDINGS: tuple[Ending, ...] = ("promoted", "refused", "failed", "crashed")


class Deployment(Settings):
    """When ``rlhf deploy`` starts a run. Votes that became ready start one too, whatever stands here.

    ``after_champion`` are registered names: a new champion of one, made by another recipe, starts a run.
    ``after_refusal`` are recipes: a gate of one that refuses starts a run.
    """

    cron: str | None = None
    """Schedule of five fields: minute, hour, day of month, month, weekday. null: no schedule."""
    timezone: str = "UTC"
    """Time zone that `cron` is read in, such as Europe/Berlin."""
    every: Annotated[float, Field(ge=1, allow_inf_nan=False)] | None = None
    """Seconds between two starts, instead of `cron`; at least 1."""
    after_champion: tuple[Name, ...] = ()
    """Names of registered models: a run starts when another recipe promotes a version of one."""
    after_refusal: tuple[Name, ...] = ()
    """Names of recipes: a run starts when the gate of one refuses."""
    concurrent: Count = 1
    """Runs of this recipe at a time; further ones wait."""
    retries: Annotated[int, Field(ge=0, le=20)] = 0
    """How often a failed run is started again. A gate's refusal is no failure."""
    retry_seconds: Annotated[float, Field(ge=0)] = 60.0
    """Seconds before a failed run is started again."""
    timeout_seconds: Positive | None = None
    """Seconds after which a run counts as failed; the next one resumes from its checkpoint. null: no limit."""

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
    """Environment variable that holds the address."""
    secret_env: Variable | None = None
    """Environment variable that holds the key of the HMAC-SHA256 signature. null: unsigned."""


class Email(Settings):
    """A message by SMTP. User and password are the values of the variables named."""

    server: str
    """Host name of the SMTP server."""
    port: Annotated[int, Field(ge=1, le=65535)] = 587
    """Port of the SMTP server. 587: message submission (RFC 6409)."""
    security: Literal["starttls", "tls", "none"] = "starttls"
    """Encryption: `starttls` upgrades the connection, `tls` encrypts it from its start, `none` sends in the clear."""
    sender: str
    """Address in the From header."""
    to: tuple[str, ...] = Field(min_length=1)
    """Addresses of the recipients."""
    user_env: Variable | None = None
    """Environment variable that holds the user name; goes with `password_env`."""
    password_env: Variable | None = None
    """Environment variable that holds the password; goes with `user_env`."""

    @model_validator(mode="after")
    def _both_or_none(self) -> Self:
        if (self.user_env is None) != (self.password_env is None):
            raise ValueError("user_env and password_env go together")
        return self


class Notify(Settings):
    """Who hears how a run ended.

    ``apprise`` is the variable that holds addresses of services as Apprise writes them, with blanks between them.
    ``block`` is a notification block that was saved in Prefect, as ``type/name``.
    """

    on: tuple[Ending, ...] = Field(ENDINGS, min_length=1)
    """Endings of a run that are announced. Default: promoted, refused, failed and crashed."""
    webhook: Webhook | None = None
    """An address that the notice is posted to as JSON."""
    slack: Variable | None = None
    """Environment variable that holds the address of a Slack incoming webhook."""
    email: Email | None = None
    """A message by SMTP."""
    apprise: Variable | None = None
    """Environment variable that holds addresses of services as Apprise writes them, with blanks between them."""
    block: Annotated[str, Field(pattern=r"^[a-z0-9-]+/[\w-]+$")] | None = None
    """A notification block saved in Prefect, as `type/name`."""

    @property
    def variables(self) -> dict[str, str]:
        """The environment variables that have to be set, by the setting that names them."""
        named = {
            "webhook.url_env": self.webhook and self.webhook.url_env,
            "webhook.secret_env": self.webhook and self.webhook.secret_env,
            "slack": self.slack,
            "apprise": self.apprise,
            "email.user_env": self.email and self.email.user_env,
            "email.password_env": self.email and self.email.password_env,
        }
        return {setting: name for setting, name in named.items() if name}
