"""Credentials in other people's words: the text of an exception quotes URLs, headers and keys."""

import re

_MASK = "***"

_SHAPES = re.compile(
    r"""
      (?P<before> [?&;] (?: key | api[_-]?key | (?:access_|auth_)?token | sig(?:nature)? | (?:client_)?secret
                          | password | passwd ) =            # in a query: ?api_key=...
                | :// [^\s/:@]* : (?= [^\s/@]+ @ )            # before a host: https://user:password@
                | \b (?: bearer | basic ) \s+                # in a header
      ) [^\s&'"<>@,;]+
    | \b (?: sk | pk | rk ) [-_] [\w-]{16,}                   # OpenAI, Anthropic, Stripe and their like
    | \b (?: AIza [\w-]{30,} | gh[opsur]_ \w{20,} | github_pat_ \w{20,} | xox[abprs]- [\w-]{10,} | AKIA [A-Z0-9]{16}
            | eyJ [\w-]{10,} \. [\w-]{10,} \. [\w-]+ )        # Google, GitHub, Slack, AWS, a JSON Web Token
    """,
    re.VERBOSE | re.IGNORECASE,
)


def masked(text: str) -> str:
    """`text` without what has the shape of a credential. What has no shape, such as a password in prose, stays."""
    return _SHAPES.sub(lambda found: f"{found['before'] or ''}{_MASK}", text)
