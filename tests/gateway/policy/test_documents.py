"""What docs/policy.md shows works as it says, and the shipped example is a policy without leaks."""

import re
from pathlib import Path

from gateway.policy import Policy
from gateway.policy.cases import run_cases
from gateway.policy.check import check
from gateway.policy.load import LIMIT_KEYS, ROLE_KEYS

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "policy.md").read_text(encoding="utf-8")


def test_the_policy_of_the_page_answers_its_cases(tmp_path: Path) -> None:
    """Both blocks are read from the page; what does not fit is a difference."""
    policy_text, cases_text = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "policy.toml").write_text(policy_text)
    (tmp_path / "cases.toml").write_text(cases_text)
    policy = Policy.load(tmp_path / "policy.toml")
    assert policy.warnings == ()
    report = run_cases(policy, tmp_path / "cases.toml")
    assert report.failed == ()
    assert len(report.results) == 6
    assert check(policy).isolated


def test_the_page_names_every_key_of_a_role() -> None:
    """A key that is not documented is a key that nobody finds."""
    assert [key for key in ROLE_KEYS if f"`{key}" not in PAGE and key not in PAGE] == []
    assert [key for key in LIMIT_KEYS if f"`limits.{key}`" not in PAGE] == []


def test_the_shipped_example_is_isolated() -> None:
    """It loads, and no device reaches another's own topic."""
    report = check(Policy.load(ROOT / "examples" / "policy.toml"))
    assert report.isolated
    assert [warning for warning in report.warnings if "no [[issuer]]" not in warning] == []
