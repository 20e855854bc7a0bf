"""What is typed after a command: values, or a complaint that names the option."""

import io
from decimal import Decimal
from pathlib import Path

import pytest

from holdfast.contracts.errors import InvalidRequest
from holdfast.contracts.limits import Limits
from holdfast.server.arguments import args_given, input_given, limits_given
from holdfast.server.cli import main


def test_an_input_is_json_or_a_file_of_it_or_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "in put.json"
    file.write_text('{"text": "é"}', encoding="utf-8")
    monkeypatch.setattr("sys.stdin", io.StringIO('{"text": 3}'))
    assert input_given(' {"text": 1}') == {"text": 1}
    assert input_given(str(file)) == {"text": "é"}
    assert input_given("-") == {"text": 3}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("{text", "--input is not JSON: "),
        ("absent.json", "--input absent.json: there is no such file"),
        ("", "--input : cannot be read"),
        (".", "--input .: cannot be read"),
    ],
)
def test_an_input_that_is_none_is_refused(given: str, said: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        input_given(given)
    assert refused.value.message.startswith(said)


def test_limits_that_are_not_given_stay_unset_and_none_is_unlimited() -> None:
    assert limits_given({"max_steps": None}) is None
    limits = limits_given({"max_steps": None, "max_cost_usd": "0.25", "max_tokens": "none", "deadline_seconds": "1.5"})
    assert limits == Limits(max_cost_usd=Decimal("0.25"), max_tokens=None, deadline_seconds=1.5)
    assert limits is not None
    assert "max_steps" in limits.unset


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("max_tokens", "lots"),
        ("max_steps", "-1"),
        ("max_model_calls", "1.5"),
        ("max_cost_usd", "0.1234567"),
        ("deadline_seconds", "-5"),
        ("deadline_seconds", "nan"),
    ],
)
def test_a_limit_that_is_none_is_refused_by_its_option(name: str, given: str) -> None:
    with pytest.raises(InvalidRequest, match=f"^--{name.replace('_', '-')}: .*, not '{given}'$"):
        limits_given({name: given})


def test_arguments_of_a_tool_are_an_object() -> None:
    assert args_given(None) is None
    assert args_given('{"amount": "9.00"}') == {"amount": "9.00"}
    with pytest.raises(InvalidRequest, match="--args must be a JSON object"):
        args_given("[1]")


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["run", "agent"], "'--input'"),
        (["run", "agent", "--input", "{}", "--max-modelcalls", "1"], "--max-modelcalls"),
        (["runn"], "'runn'"),
        (["approve", "id", "--by", "dana", "--args", "{}", "--answer", "x"], "exclude each other"),
    ],
)
def test_what_is_typed_wrong_is_one_line(typed: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(typed) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert said in line
