"""Who may do what: keys of clients and of the operator, compared in constant time, and the addresses served without."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass

from mass.config import ServeConfig
from mass.errors import ConfigError
from mass.serving.errors import forbidden, unauthorised


@dataclass(frozen=True)
class Caller:
    """Whoever made a request."""

    owner: str
    """Hash of its key; empty without keys. Records and learned examples belong to it."""
    admin: bool
    """True for the operator."""


@dataclass(frozen=True, repr=False)
class Keys:
    """The keys of a server. Only hashes are kept."""

    clients: tuple[bytes, ...] = ()
    admin: bytes | None = None

    @property
    def required(self) -> bool:
        """True if a request needs a key."""
        return bool(self.clients)

    def caller(self, authorization: str | None) -> Caller:
        """Return who made a request with this header. Raises a `RequestError` of status 401.

        All keys are compared, each in constant time, so that the time tells nothing about any of them.
        """
        from mass.serving.records import owner_of  # not before a request: the server listens before torch is loaded

        key = _credential(authorization)
        given = _digest(key)
        client = [hmac.compare_digest(given, one) for one in self.clients]
        admin = self.admin is not None and hmac.compare_digest(given, self.admin)
        if self.required and not (any(client) or admin):
            raise unauthorised()
        known = any(client) or admin
        # Without any key there is only this machine, whose user is the operator.
        return Caller(owner_of(key) if known else "", admin or (self.admin is None and not self.required))


def require_admin(caller: Caller) -> None:
    """Refuse a caller that is not the operator."""
    if not caller.admin:
        raise forbidden("this needs the operator's key; expected that of --admin_key_env")


def keys_of(config: ServeConfig, environment: Mapping[str, str] = os.environ) -> Keys:
    """Read the keys from the environment variables that the configuration names.

    Raises:
        ConfigError: A variable that is named is missing or unusable, or other machines would be served without a key.
    """
    clients = tuple(_digest(key) for key in _read("api_key_env", config.api_key_env, environment))
    admins = _read("admin_key_env", config.admin_key_env, environment)
    if len(admins) > 1:
        raise ConfigError(f"{config.admin_key_env} holds {len(admins)} keys; expected one")
    if not clients and not is_loopback(config.host):
        raise ConfigError(
            f"host is {config.host!r}, which other machines reach, and {config.api_key_env} holds no key; set it to "
            "one, or serve 127.0.0.1"
        )
    admin = _digest(admins[0]) if admins else None
    if admin in clients:
        raise ConfigError(f"{config.admin_key_env} and {config.api_key_env} hold the same key; expected different ones")
    return Keys(clients, admin)


def is_loopback(host: str) -> bool:
    """Return True for an address that only this machine reaches."""
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _read(option: str, variable: str, environment: Mapping[str, str]) -> list[str]:
    value = environment.get(variable)
    if value is None:
        if variable != getattr(ServeConfig, option):
            raise ConfigError(f"{option} names {variable!r}, which is not set; set it to the key, or leave it out")
        return []
    found = [key.strip() for key in value.split(",")]
    for key in found:
        if not (key.isascii() and key.isprintable() and key) or " " in key or ":" in key:
            raise ConfigError(
                f"{variable} holds an empty key, or one with other characters than a header takes; expected printable "
                "ASCII without spaces and colons; unset it to serve this machine without a key"
            )
    return found


def _credential(authorization: str | None) -> str:
    """Return the key in a header: a bearer token, or the password that a browser asked its user for."""
    scheme, _, value = (authorization or "").strip().partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value.strip(), validate=True).decode("utf-8", "replace").partition(":")[2]
        except (binascii.Error, ValueError):
            return ""
    return ""


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
