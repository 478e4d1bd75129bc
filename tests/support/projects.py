"""Projects for the gateway's tests, as files."""

from __future__ import annotations

PRICES = 'usd_per_million_input = "1"\nusd_per_million_output = "2"\n'


def settings(*, gateway: str = "", ledger: str = "", tables: str = "") -> str:
    """drivetrain.toml with a name; the tables behind it."""
    return f'[project]\nname = "tests"\n\n[gateway]\n{gateway}\n[ledger]\n{ledger}\n{tables}'


def provider(name: str, base_url: str, *, dialect: str = "openai", more: str = "", breaker: bool = False) -> str:
    """`[providers.NAME]`; without a breaker, since most tests break providers on purpose, many times in a row."""
    watched = "" if breaker else "breaker = false\n"
    return f'[providers.{name}]\ndialect = "{dialect}"\nbase_url = "{base_url}"\n{watched}{more}\n'


def model(reference: str, facts: str = PRICES) -> str:
    """`[models."provider/model"]`, with a price."""
    return f'[models."{reference}"]\n{facts}\n'


def workflow(name: str, *route: str, more: str = "") -> str:
    """`[workflows.NAME]`; route: inline tables, or just `provider/model`."""
    steps = []
    for number, step in enumerate(route):
        steps.append(step if step.startswith("{") else f'{{ name = "v{number}", model = "{step}" }}')
    return (
        f'[workflows.{name}]\nowner = "team@acme.example"\nteam = "support"\nuse_case = "tests"\n'
        f"{more}route = [\n  {', '.join(steps)},\n]\n\n"
    )
