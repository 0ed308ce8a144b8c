"""Secrets are recognised by their names and left out; other keys stay."""

import pytest

from quadriga.data.secrets import names_secret, without_secrets


def test_keys_that_name_secrets_are_removed() -> None:
    config = {
        "max_tokens": 8,
        "train_tokens": 9,
        "tokenizer": "t",
        "pad_token": "<pad>",
        "token": "s3cret-value",
        "nested": [{"api_key": "s3cret-value", "wandb_api_key": "s3cret-value", "DB_PASSWORD": "s3cret-value"}],
        "hf_token": "s3cret-value",
    }
    assert without_secrets(config) == {
        "max_tokens": 8,
        "train_tokens": 9,
        "tokenizer": "t",
        "pad_token": "<pad>",
        "nested": [{}],
    }


def test_passwords_in_urls_are_hidden() -> None:
    assert without_secrets("see https://me:s3cret-value@host/x") == "see https://***@host/x"


def test_values_of_secret_variables_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "0123456789abcdef")
    assert without_secrets(("GET ?key=0123456789abcdef", 1)) == ["GET ?key=$SOME_API_KEY", 1]


def test_secret_keys_without_a_text_stay() -> None:
    assert without_secrets({"password": None}) == {"password": None}


@pytest.mark.parametrize(
    ("key", "secret"),
    [
        ("WANDB_API_KEY", True),
        ("hf_token", True),
        ("AWS_SECRET_ACCESS_KEY", True),
        ("aws_access_key_id", True),
        ("cluster.credentials", True),
        ("eos_token", False),
        ("max_tokens", False),
        ("tokenizer", False),
        (3, False),
    ],
)
def test_names_of_secrets(key: object, secret: bool) -> None:
    assert names_secret(key) is secret
