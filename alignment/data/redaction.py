"""Personal data and secrets in a text, replaced by rule before the text is kept.

The rules know forms: addresses of e-mail and of machines, numbers of telephones, cards and accounts, keys and
passwords. Numbers with check digits are checked, so that a year or a price is left as it is. They know no names and no
street addresses: a text that passed them may still be about a person.
"""

import ipaddress
import re
from collections.abc import Callable
from typing import NamedTuple


class _Rule(NamedTuple):
    """``holds`` is asked of every match, and a match that it denies stays as it is."""

    placeholder: str
    pattern: re.Pattern[str]
    holds: Callable[[str], bool] = lambda _found: True


def redact(text: str) -> str:
    """``text`` with what the rules find replaced by ``[email]``, ``[phone]``, ``[card]`` …, until they find nothing."""
    before = ""
    while text != before:  # one number may hide the next, as digits in a row do
        before = text
        for rule in _RULES:
            text = rule.pattern.sub(_replacement(rule), text)
    return text


def _replacement(rule: _Rule) -> Callable[[re.Match[str]], str]:
    return lambda match: match.expand(rule.placeholder) if rule.holds(match[0]) else match[0]


def passes_luhn(number: str) -> bool:
    """Whether the digits of a card's number fit their check digit (ISO/IEC 7812-1, annex B)."""
    digits = [int(character) for character in number if character.isdigit()]
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[-2::-2]]
    return 13 <= len(digits) <= 19 and len(set(digits)) > 1 and (sum(digits[::-2]) + sum(doubled)) % 10 == 0


def is_iban(text: str) -> bool:
    """Whether the check digits of an account's number fit (ISO 13616: its letters as numbers leave 1 modulo 97)."""
    plain = re.sub(r"\s", "", text).upper()
    return 15 <= len(plain) <= 34 and int("".join(str(int(c, 36)) for c in plain[4:] + plain[:4])) % 97 == 1


def _is_address(text: str) -> bool:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    return not (address.is_loopback or address.is_unspecified) and any(c.isdigit() for c in text)  # a::b is a name, too


def _is_telephone(text: str) -> bool:
    """7 to 15 digits (ITU-T E.164), and no date."""
    digits = sum(character.isdigit() for character in text)
    return 7 <= digits <= 15 and not re.fullmatch(r"\d{4}([-./ ])\d{1,2}\1\d{1,2}|\d{1,2}([-./ ])\d{1,2}\2\d{4}", text)


_SEPARATED = r"[ \-./]?"
_RULES = (
    _Rule(
        "[key]", re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL)
    ),
    _Rule(r"\1[credentials]@", re.compile(r"(\b[a-z][a-z0-9+.\-]*://)[^\s/@:]+:[^\s/@]+@", re.IGNORECASE)),
    _Rule("[email]", re.compile(r"(?<![\w.+\-])[\w.+\-]+@(?:[\w\-]+\.)+[^\W\d_]{2,}")),
    _Rule("[key]", re.compile(r"\beyJ[\w\-]{8,}\.[\w\-]{8,}\.[\w\-]*")),  # a JSON Web Token
    _Rule("[key]", re.compile(r"\b(?:sk|pk|rk)[-_][A-Za-z0-9_\-]{16,}")),
    _Rule("[key]", re.compile(r"\b(?:gh[oprsu]_|github_pat_|glpat-|hf_|xox[abeoprs]-|npm_|pypi-)[A-Za-z0-9_\-]{10,}")),
    _Rule("[key]", re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b|\bAIza[\w\-]{35}")),
    _Rule(
        r"\1[secret]",
        re.compile(
            r"(\b(?:password|passwd|passphrase|pwd|api[ _\-]?key|secret[ _\-]?key|access[ _\-]?token|auth[ _\-]?token)"
            r"[\"']?\s*(?:[:=]|\bis\b(?=\s+[\"']?\S*\d))\s*[\"']?)(?!\[)[^\s\"',;]{4,}",
            re.IGNORECASE,
        ),
    ),
    _Rule(r"\1[secret]", re.compile(r"(\bBearer\s+)(?!\[)[\w.~+/\-]{12,}=*")),
    _Rule("[iban]", re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b"), is_iban),
    _Rule("[card]", re.compile(r"(?<![\d.,\-])\d(?:[ \-]?\d){12,18}(?![\d\-]|[.,]\d)"), passes_luhn),
    _Rule("[ssn]", re.compile(r"(?<![\d\-])(?!000|666|9\d\d)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\d\-])")),
    _Rule("[ip]", re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?!\.?\w)"), _is_address),
    _Rule("[ip]", re.compile(r"(?<![\w:])(?:[0-9a-f]{0,4}:){2,7}[0-9a-f]{0,4}(?![\w:])", re.IGNORECASE), _is_address),
    _Rule("[phone]", re.compile(rf"(?<![\w+.])\+\d{{1,3}}(?:{_SEPARATED}\(?\d{{1,5}}\)?){{2,6}}(?!\w)"), _is_telephone),
    _Rule(
        "[phone]", re.compile(r"(?<![\w+.\-])\(0?\d{2,4}\)[ \-./]?\d{3,4}(?:[ \-.]?\d{2,4}){1,2}(?!\w)"), _is_telephone
    ),
    _Rule("[phone]", re.compile(r"(?<![\w+.,\-])\d{3}([ \-.])\d{3}\1\d{4}(?![\w\-])"), _is_telephone),
    _Rule("[phone]", re.compile(r"(?<![\w+.,\-])0\d{1,4}[ \-/]\d{3,8}(?:[ \-]\d{2,6}){0,3}(?![\w\-])"), _is_telephone),
)
