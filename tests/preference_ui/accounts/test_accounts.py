from datetime import timedelta

import pytest
from sqlalchemy import select, update

from preference_ui.accounts import accounts as people
from preference_ui.accounts import throttle
from preference_ui.accounts.auth import authenticate, sign_in, sign_out_everywhere
from preference_ui.store import schema
from preference_ui.store.errors import Refusal
from preference_ui.store.store import Store, now

PASSWORD = "three calm green rivers"


def test_from_the_first_link_to_a_signed_in_rater(store: Store) -> None:
    first = people.first_administrator(store)
    second = people.first_administrator(store)  # a restart before anybody came: only the newest link works
    assert first is not None
    assert second is not None
    with pytest.raises(Refusal, match="already used"):
        people.accept(store, first, "root", PASSWORD)
    _, root = people.accept(store, second, "Root", PASSWORD)
    account = authenticate(store, root)
    assert account is not None
    assert (account.name, account.is_administrator) == ("root", True)
    assert people.first_administrator(store) is None
    token = people.invite(store, "rater", created_by="root")
    assert people.invitation_role(store, token) == "rater"
    with pytest.raises(Refusal, match="already taken"):
        people.accept(store, token, "ROOT", PASSWORD)
    identifier, _ = people.accept(store, token, "ada", PASSWORD)  # the invitation was not used up by the failure
    session = sign_in(store, " Ada ", PASSWORD, "10.0.0.1")
    signed_in = authenticate(store, session)
    assert signed_in is not None
    assert (signed_in.id, signed_in.role) == (identifier, "rater")
    assert sign_out_everywhere(store, identifier, actor="ada") == 2
    assert authenticate(store, session) is None


def test_an_old_invitation_is_closed(store: Store) -> None:
    token = people.invite(store, "rater", created_by="root")
    with store.write() as connection:
        connection.execute(update(schema.invitations).values(expires=now() - timedelta(seconds=1)))
    with pytest.raises(Refusal, match="too old"):
        people.accept(store, token, "ada", PASSWORD)


def test_tokens_and_passwords_are_not_in_the_store(store: Store) -> None:
    token = people.invite(store, "rater", created_by="root")
    _, session = people.accept(store, token, "ada", PASSWORD)
    with store.read() as connection:
        everything = repr([connection.execute(select(table)).all() for table in schema.metadata.sorted_tables])
    for secret in (token, session, PASSWORD):
        assert secret not in everything
    assert "$argon2id$" in everything


def test_lockout_doubles_and_a_right_password_forgives(store: Store) -> None:
    token = people.invite(store, "rater", created_by="root")
    people.accept(store, token, "ada", PASSWORD)
    for _ in range(4):
        with pytest.raises(Refusal, match="not right"):
            sign_in(store, "ada", "wrong", "10.0.0.1")
    assert authenticate(store, sign_in(store, "ada", PASSWORD, "10.0.0.1")) is not None
    with store.read() as connection:
        kept = select(schema.throttles.c.failures).where(schema.throttles.c.subject == "account:ada")
        assert connection.execute(kept).first() is None
    waits = []
    for _ in range(7):
        with store.write() as connection:
            connection.execute(update(schema.throttles).values(locked_until=None))
        with pytest.raises(Refusal, match="not right"):
            sign_in(store, "ada", "wrong", "10.0.0.2")
        with store.read() as connection:
            until = connection.execute(
                select(schema.throttles.c.locked_until).where(schema.throttles.c.subject == "account:ada")
            ).scalar_one()
        waits.append(None if until is None else round((until - now()).total_seconds() / 60))
    assert waits == [None, None, None, None, 1, 2, 4]


def test_a_disabled_account_is_out_at_once(store: Store) -> None:
    root = people.first_administrator(store)
    assert root is not None
    people.accept(store, root, "root", PASSWORD)
    identifier, session = people.accept(store, people.invite(store, "rater", created_by="root"), "ada", PASSWORD)
    people.change_state(store, identifier, "disabled", actor="root", reason="left")
    assert authenticate(store, session) is None
    with pytest.raises(Refusal, match="not right"):
        sign_in(store, "ada", PASSWORD, "10.0.0.1")
    assert store.audit_trail(subject="ada")[1]["detail"] == {"before": "active", "reason": "left"}


def test_openid_links_an_invited_person_and_nobody_else(store: Store) -> None:
    assert people.sign_in_oidc(store, "https://id.example 42") is None
    token = people.invite(store, "rater", created_by="root")
    people.accept(store, token, "ada", None, oidc_subject="https://id.example 42")
    session = people.sign_in_oidc(store, "https://id.example 42")
    account = authenticate(store, session)
    assert account is not None
    assert account.name == "ada"
    with pytest.raises(Refusal, match="not right"):  # there is no password to guess
        sign_in(store, "ada", "", "10.0.0.1")


def _known(store: Store, name: str = "root") -> None:
    token = people.invite(store, "administrator", created_by="system")
    people.accept(store, token, name, PASSWORD)


def _fail(store: Store, address: str, name: str = "root", reason: str = "not right") -> None:
    with pytest.raises(Refusal, match=reason):
        sign_in(store, name, "wrong", address)


def test_right_passwords_count_towards_no_lock(store: Store) -> None:
    """An office behind one gateway comes in the morning."""
    _known(store)
    for _ in range(throttle.FREE_ADDRESS + 5):
        sign_in(store, "root", PASSWORD, "10.0.0.1")
    with store.read() as connection:
        assert connection.execute(select(schema.throttles)).all() == []


def test_an_outsider_locks_nobody_out(store: Store) -> None:
    """Guesses from elsewhere at an administrator's name, for longer than an hour, and from many addresses."""
    _known(store)
    for place in range(20):
        _fail(store, f"203.0.113.{place}")
    for _ in range(throttle.FREE_HERE):
        with store.write() as connection:
            connection.execute(update(schema.throttles).values(locked_until=None))
        _fail(store, "203.0.113.99")
    _fail(store, "203.0.113.99", reason="Too many")
    assert authenticate(store, sign_in(store, "root", PASSWORD, "10.0.0.1")) is not None  # from a new place, too
    _fail(store, "203.0.113.99", reason="Too many")  # which forgave the outsider nothing


def test_guesses_from_many_addresses_get_few_tries_each(store: Store) -> None:
    _known(store)
    for place in range(throttle.FREE_ANYWHERE):
        _fail(store, f"203.0.113.{place}")
    for _ in range(throttle.SPARED):
        _fail(store, "203.0.113.50")
    _fail(store, "203.0.113.50", reason="Too many")


def test_a_rescue_from_the_shell_opens_the_door_to_one_name(store: Store) -> None:
    _known(store)
    for name in ("root", "grass-root", "x root"):
        for _ in range(throttle.FREE_HERE):
            _fail(store, "10.0.0.1", name)
    assert throttle.unlock(store, "root", actor="shell") >= 2
    assert authenticate(store, sign_in(store, "root", PASSWORD, "10.0.0.1")) is not None
    _fail(store, "10.0.0.1", "grass-root", "Too many")
    assert store.audit_trail(subject="root")[1]["action"] == "account.unlock"
