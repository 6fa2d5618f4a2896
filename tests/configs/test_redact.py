"""No password and no signature of an address survives in what a config shows."""

from hypothesis import given
from hypothesis import strategies as st

from configs.redact import HIDDEN, redact

SECRETS = st.text("abcXYZ0123456789%+/=:-_.~!$", min_size=8, max_size=40)
PLACE = "store.example/shards/web"


@given(secret=SECRETS.filter(lambda text: not set(text) & set("/")))
def test_users_of_addresses_are_hidden_and_the_place_stays(secret: str) -> None:
    shown = redact({"data": [{"path": f"https://me:{secret}@{PLACE}"}]})
    assert shown == {"data": [{"path": f"https://{HIDDEN}@{PLACE}"}]}


@given(secret=SECRETS)
def test_the_values_of_a_query_are_hidden_and_its_names_stay(secret: str) -> None:
    shown = redact([f"s3://{PLACE}?versionId={secret}&sig={secret}#part"])
    assert shown == [f"s3://{PLACE}?versionId={HIDDEN}&sig={HIDDEN}#part"]


def test_values_that_are_named_secrets_are_hidden_and_others_stay_as_they_are() -> None:
    plain = {
        "steps": 3,
        "rate": 1e-3,
        "none": None,
        "text": "a?b=c @d",
        "data": {"text_column": "token", "tokens": 5, "path": f"https://{PLACE}"},
        "files": ["~/a b/**?.md", "hf://datasets/me/it@main/x"],
    }
    assert redact(plain) == plain | {"files": ["~/a b/**?.md", "hf://datasets/me/it@main/x"]}
    secret = {"hub_token": "t", "api_key": "k", "password": "p", "access_key": ""}
    assert redact(secret) == dict.fromkeys(secret, HIDDEN) | {"access_key": ""}
