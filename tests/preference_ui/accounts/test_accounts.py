from datetime import timedelta

import pytest
from sqlalchemy import select, update

from preference_ui.accounts import accounts as people
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
