"""What is replaced in a text, by numbers that standards and banks publish as examples; and what must stay."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignment.data.redaction import is_iban, passes_luhn, redact

KEY = "a1B2" * 8  # no key of anybody's


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Write to ada.lovelace+x@mail.example.org, please.", "Write to [email], please."),
        ("müller@bücher.example says hi", "[email] says hi"),
        ("<ann@example.com> and <bob@example.co.uk>", "<[email]> and <[email]>"),
        # Test numbers of card companies, and the digits of ISO/IEC 7812's own example.
        ("card 4111 1111 1111 1111, thanks", "card [card], thanks"),
        ("5500-0000-0000-0004 expires", "[card] expires"),
        ("Amex: 378282246310005.", "Amex: [card]."),
        # Examples of the SWIFT registry of account numbers.
        ("Pay GB29 NWBK 6016 1331 9268 19 now", "Pay [iban] now"),
        ("DE89370400440532013000", "[iban]"),
        ("NO9386011117947", "[iban]"),
        # Numbers that regulators keep for films, in the forms that people write.
        ("Call +44 20 7946 0958 today", "Call [phone] today"),
        ("call (202) 555-0143 or 202-555-0178", "call [phone] or [phone]"),
        ("+1-202-555-0143", "[phone]"),
        ("Tel. 030 23125 100", "Tel. [phone]"),
        ("Tel. 0151/5551234", "Tel. [phone]"),
        ("mon tel: 01 99 00 12 34", "mon tel: 01 99 00 12 34"),  # groups of two are dates and scores as well
        ("SSN 219-09-9999", "SSN [ssn]"),
        ("from 203.0.113.7 and 2001:db8::8a2e:370:7334", "from [ip] and [ip]"),
        ("postgres://ada:s3cret@db.example.org/x", "postgres://[credentials]@db.example.org/x"),
        (f"export OPENAI_API_KEY=sk-{KEY}", "export OPENAI_API_KEY=[key]"),
        (f"ghp_{KEY} or hf_{KEY}", "[key] or [key]"),
        ("AKIAIOSFODNN7EXAMPLE", "[key]"),  # of AWS' documentation
        (f"eyJhbGciOiJIUzI1NiJ9.{KEY}.{KEY}", "[key]"),
        ('{"password": "hunter22"}', '{"password": "[secret]"}'),
        ("my password is hunter22.", "my password is [secret]"),
        (f"Authorization: Bearer {KEY}", "Authorization: Bearer [secret]"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----\nafter", "[key]\nafter"),
        ("-----BEGIN PRIVATE KEY-----\nMIIE", "[key]"),
    ],
)
def test_what_is_replaced(text: str, expected: str) -> None:
    assert redact(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "The war of 1914-1918 cost 1,234,567 lives; see 2024-01-15 and 15.01.2024.",
        "What is 12345678 * 87654321?",
        "12 345 678 901",
        "pi is 3.14159265358979323846",
        "4111 1111 1111 1112 is no card's number",  # its check digit is another
        "ISBN 978-3-16-148410-0",
        "Version 1.2.3.4567 of the tool listens on 127.0.0.1:8000",
        "It is 10:30:45 in a::b and std::vector",
        "What is a password? A passphrase is better, and the password is required.",
        "x = y @ z.T  # a product; @dataclass class A: ...",
        "GB29 is a postcode, DE89 is not",
        "Die Antwort ist 42. 0 1 1 2 3 5 8 13 21 34",
        "the score was 3-2 and 100-99-98",
        "https://example.org/a?b=c",
        "0.5 / 0.25 and 1e-5",
    ],
)
def test_what_stays(text: str) -> None:
    assert redact(text) == text


def test_check_digits_by_hand() -> None:
    # 7992739871 has the check digit 3: doubled from the right 2 7 6 9 7 4 9 18→9 ... sum 67, so 3 completes 70.
    assert not passes_luhn("79927398713")  # eleven digits are no card's
    assert passes_luhn("4111111111111111")
    assert not passes_luhn("4111111111111121")
    assert not passes_luhn("0000000000000000")
    assert is_iban("GB82 WEST 1234 5698 7654 32")
    assert not is_iban("GB82 WEST 1234 5698 7654 33")


@given(st.text(max_size=80) | st.from_regex(r"[a-z]+@[a-z]+\.com \+\d{10} 0\d{3}/\d{6} password: \w{4,9}"))
def test_twice_is_the_same_as_once(text: str) -> None:
    assert redact(redact(text)) == redact(text)
